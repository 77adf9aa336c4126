/*
 * takeover.c: hosts that hand over a connection in every state that a real server can have brought it into. Driven by Go tests.
 *
 *     takeover raw CONNECTION DIRECTORY START [NAME=VALUE...]    speaks the protocol itself, and starts the stream at START
 *     takeover libpq CONNINFO DIRECTORY START                    the same with libpq
 *     takeover unread CONNECTION DIRECTORY                       hands over what the authentication has left, in every way
 *     takeover again CONNINFO DIRECTORY COUNT                    uses one connection by turns with the library
 *
 * CONNECTION is the path of a Unix socket, or an address "127.0.0.1:PORT" where TLS is spoken. NAME: system=0 does not say who the
 * server is, ahead=BYTES reads so far into the stream beforehand.
 */
#include <arpa/inet.h>
#include <libpq-fe.h>
#include <netinet/in.h>
#include <receivewal_openssl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/un.h>

#include "check.h"

static _Atomic(receivewal *) handle;

static void on_signal(int signo)
{
    receivewal *rw = atomic_load(&handle);

    (void)signo;
    if (rw != NULL)
        receivewal_stop(rw);
}

static void say(const char *what, const char *text)
{
    printf("%s %s\n", what, text);
    fflush(stdout);
}

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    (void)ctx;
    say(level >= RECEIVEWAL_LOG_WARNING ? "warning" : "log", text);
}

/* Receives until SIGINT, on whatever is lent. Returns whether the connection is usable afterwards. */
static bool receive(const receivewal_connection *connection, const char *directory)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_status status;
    receivewal *rw;
    bool usable;

    o.directory = directory;
    o.status_interval = 200; /* the tests wait for what the server hears */
    o.events.log = on_log;
    if (receivewal_attach(connection, &rw) != RECEIVEWAL_OK)
    {
        say("refused", receivewal_errmsg(NULL));
        return false;
    }
    atomic_store(&handle, rw);
    status = receivewal_receive(rw, &o);
    atomic_store(&handle, NULL);
    printf("status %d %s\n", (int)status, receivewal_errmsg(rw));
    usable = receivewal_connection_usable(rw);
    printf("usable %d\n", usable);
    receivewal_detach(rw);
    return usable;
}

/* ------------------------------------------------------------------------------------- the protocol by hand */

typedef struct channel
{
    int fd;
    SSL *ssl;
} channel;

static size_t channel_read(channel *c, void *buffer, size_t size)
{
    ssize_t n = c->ssl != NULL ? SSL_read(c->ssl, buffer, (int)size) : read(c->fd, buffer, size);

    REQUIRE(n > 0);
    return (size_t)n;
}

static void channel_write(channel *c, const void *buffer, size_t size)
{
    if (c->ssl != NULL)
        REQUIRE(SSL_write(c->ssl, buffer, (int)size) == (int)size);
    else
        REQUIRE(write(c->fd, buffer, size) == (ssize_t)size);
}

static void read_all(channel *c, void *buffer, size_t size)
{
    for (size_t got = 0; got < size;)
        got += channel_read(c, (char *)buffer + got, size - got);
}

/* Reads one message; of its body as much as fits. */
static char message(channel *c, unsigned char *body, size_t size, size_t *length)
{
    unsigned char header[5], rest[4096];

    read_all(c, header, 5);
    *length = ((size_t)header[1] << 24 | (size_t)header[2] << 16 | (size_t)header[3] << 8 | header[4]) - 4;
    for (size_t got = 0; got < *length;)
    {
        size_t n = *length - got > sizeof(rest) ? sizeof(rest) : *length - got;

        read_all(c, rest, n);
        if (got < size)
            memcpy(body + got, rest, got + n > size ? size - got : n);
        got += n;
    }
    return (char)header[0];
}

static channel connect_raw(const char *where)
{
    static const char startup[] = "user\0postgres\0replication\0true\0application_name\0takeover\0";
    unsigned char length[8] = { 0, 0, 0, sizeof(startup) + 8, 0, 3, 0, 0 };
    channel c = { .ssl = NULL };

    if (where[0] == '/')
    {
        struct sockaddr_un address = { .sun_family = AF_UNIX };

        strncpy(address.sun_path, where, sizeof(address.sun_path) - 1);
        c.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        REQUIRE(connect(c.fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    }
    else
    {
        static const unsigned char request[8] = { 0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f }; /* SSLRequest */
        struct sockaddr_in address = { .sin_family = AF_INET };
        char answer;

        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address.sin_port = htons((uint16_t)atoi(strchr(where, ':') + 1));
        c.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        REQUIRE(connect(c.fd, (struct sockaddr *)&address, sizeof(address)) == 0);
        REQUIRE(write(c.fd, request, 8) == 8 && read(c.fd, &answer, 1) == 1 && answer == 'S');
        c.ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
        REQUIRE(SSL_set_fd(c.ssl, c.fd) == 1 && SSL_connect(c.ssl) == 1);
    }
    channel_write(&c, length, 8);
    channel_write(&c, startup, sizeof(startup));
    return c;
}

static void command(channel *c, const char *sql)
{
    unsigned char header[5] = { 'Q', 0, 0, 0, (unsigned char)(strlen(sql) + 5) };

    channel_write(c, header, 5);
    channel_write(c, sql, strlen(sql) + 1);
}

/* Reads up to ReadyForQuery. value gets the first column of a row. */
static void answer(channel *c, char *value, size_t size)
{
    for (;;)
    {
        unsigned char body[1000];
        size_t length;
        char kind = message(c, body, sizeof(body), &length);

        REQUIRE(kind != 'E');
        if (kind == 'D' && value != NULL)
            snprintf(value, size, "%.*s", body[5], (const char *)body + 6);
        if (kind == 'Z')
            return;
    }
}

static receivewal_connection lent(channel *c, receivewal_io *io)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;

    connection.fd = c->fd;
    if (c->ssl != NULL)
    {
        *io = receivewal_openssl_io(c->ssl);
        connection.io = io;
    }
    return connection;
}

/* The host's own command, on a connection that has come back. */
static void own_command(channel *c)
{
    char system[40] = "";

    command(c, "IDENTIFY_SYSTEM");
    answer(c, system, sizeof(system));
    say("sql", system);
}

static int raw(int argc, char **argv)
{
    channel c = connect_raw(argv[2]);
    char system[40], size[40], sql[100];
    unsigned char body[100], *ahead;
    size_t length, want = 0, got = 0;
    receivewal_connection connection;
    receivewal_io io;
    bool know = true;
    int flags;

    for (int i = 5; i < argc; i++)
        if (strcmp(argv[i], "system=0") == 0)
            know = false;
        else
            REQUIRE(sscanf(argv[i], "ahead=%zu", &want) == 1);
    answer(&c, NULL, 0);
    command(&c, "IDENTIFY_SYSTEM");
    answer(&c, system, sizeof(system));
    command(&c, "SHOW wal_segment_size");
    answer(&c, size, sizeof(size));
    snprintf(sql, sizeof(sql), "START_REPLICATION %s TIMELINE 1", argv[4]);
    command(&c, sql);
    REQUIRE(message(&c, body, sizeof(body), &length) == 'W');
    ahead = malloc(want + 1);
    REQUIRE(ahead != NULL);
    while (got < want)
        got += channel_read(&c, ahead + got, want - got);

    connection = lent(&c, &io);
    connection.read_ahead = ahead;
    connection.read_ahead_length = got;
    connection.streaming = 1;
    connection.stream_timeline = 1;
    REQUIRE(receivewal_lsn_parse(argv[4], &connection.stream_lsn) == RECEIVEWAL_OK);
    if (know)
    {
        connection.system_identifier = strtoull(system, NULL, 10);
        connection.segment_size = (uint32_t)atoi(size) << 20;
    }
    flags = fcntl(c.fd, F_GETFL);
    if (!receive(&connection, argv[3]))
        return 1;
    free(ahead);
    CHECK("flags", fcntl(c.fd, F_GETFL) == flags, "other flags than before");
    own_command(&c);
    return 0;
}

static int with_libpq(char **argv)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    const char *keywords[] = { "dbname", "replication", "application_name", NULL };
    const char *values[] = { argv[2], "true", "takeover", NULL };
    PGconn *conn = PQconnectdbParams(keywords, values, 1);
    PGresult *result;
    char sql[100];

    REQUIRE(PQstatus(conn) == CONNECTION_OK);
    result = PQexec(conn, "IDENTIFY_SYSTEM");
    REQUIRE(PQresultStatus(result) == PGRES_TUPLES_OK);
    connection.system_identifier = strtoull(PQgetvalue(result, 0, 0), NULL, 10);
    PQclear(result);
    result = PQexec(conn, "SHOW wal_segment_size");
    REQUIRE(PQresultStatus(result) == PGRES_TUPLES_OK);
    connection.segment_size = (uint32_t)atoi(PQgetvalue(result, 0, 0)) << 20;
    PQclear(result);
    snprintf(sql, sizeof(sql), "START_REPLICATION %s TIMELINE 1", argv[4]);
    result = PQexec(conn, sql);
    REQUIRE(PQresultStatus(result) == PGRES_COPY_BOTH);
    PQclear(result);

    connection.fd = PQsocket(conn);
    connection.server_version = PQserverVersion(conn);
    connection.streaming = 1;
    connection.stream_timeline = 1;
    REQUIRE(receivewal_lsn_parse(argv[4], &connection.stream_lsn) == RECEIVEWAL_OK);
    /* libpq goes on believing that it is in COPY mode: the host closes the connection. */
    return receive(&connection, argv[3]) ? 0 : 1;
}

/* -------------------------------------------------------------------------- what the authentication has left */

/* Hands over a connection of whose authentication `ahead` bytes were read, into read_ahead, and the rest is unread. */
static size_t unread(const char *where, size_t ahead, bool settled)
{
    channel c = connect_raw(where);
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_connection connection;
    unsigned char buffer[4096];
    char title[100];
    receivewal_io io;
    receivewal *rw;
    size_t got = 0;

    /* Everything is there: AuthenticationOk, ParameterStatus, BackendKeyData, ReadyForQuery. */
    if (settled)
        sleep_ms(200);
    if (ahead > sizeof(buffer)) /* all of it */
        do
            got += channel_read(&c, buffer + got, sizeof(buffer) - got);
        while (got < 6 || memcmp(buffer + got - 6, "Z\0\0\0\5I", 6) != 0);
    else
        while (got < ahead)
            got += channel_read(&c, buffer + got, ahead - got);
    connection = lent(&c, &io);
    connection.read_ahead = buffer;
    connection.read_ahead_length = got;
    REQUIRE(receivewal_attach(&connection, &rw) == RECEIVEWAL_OK);
    memset(buffer, 0xff, sizeof(buffer)); /* the library has a copy */
    snprintf(title, sizeof(title), "%zu bytes of the authentication read", ahead);
    CHECK(title, receivewal_identify(rw, &system) == RECEIVEWAL_OK && system.timeline == 1 && receivewal_connection_usable(rw) == 1, "%s",
          receivewal_errmsg(rw));
    receivewal_detach(rw);
    own_command(&c);
    close(c.fd);
    return got;
}

/* ------------------------------------------------------------------------------------- by turns, many times */

static int again(char **argv)
{
    const char *keywords[] = { "dbname", "replication", NULL };
    const char *values[] = { argv[2], "true", NULL };
    PGconn *conn = PQconnectdbParams(keywords, values, 1);
    int wrong_flags = 0, unusable = 0, failed = 0, count = atoi(argv[4]);
    receivewal_io io;

    REQUIRE(PQstatus(conn) == CONNECTION_OK);
    for (int i = 0; i < count; i++)
    {
        receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
        receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
        receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
        int fd = PQsocket(conn), flags = fcntl(fd, F_GETFL);
        receivewal_status status;
        PGresult *result;
        receivewal *rw;

        /* libpq's socket is non-blocking; every other time it is made blocking. */
        flags = i % 2 ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
        fcntl(fd, F_SETFL, flags);
        connection.fd = fd;
        connection.server_version = PQserverVersion(conn);
        if (PQsslInUse(conn))
        {
            io = receivewal_openssl_io(PQsslStruct(conn, "OpenSSL"));
            connection.io = &io;
        }
        REQUIRE(receivewal_attach(&connection, &rw) == RECEIVEWAL_OK);
        wrong_flags += fcntl(fd, F_GETFL) != flags;
        if (i % 3 == 0)
        {
            failed += receivewal_identify(rw, &system) != RECEIVEWAL_OK;
            wrong_flags += fcntl(fd, F_GETFL) != flags;
            failed += receivewal_drop_slot(rw, "nobody", 0) != RECEIVEWAL_ERR_NO_SLOT;
        }
        else if (i % 3 == 1)
        {
            /* A stream that is ended as soon as it has begun. */
            o.directory = argv[3];
            receivewal_start(rw, &o);
            while ((status = receivewal_wait(rw, 1)) == RECEIVEWAL_PENDING)
            {
                receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

                receivewal_get_progress(rw, &progress);
                if (progress.state == RECEIVEWAL_STATE_STREAMING)
                    receivewal_stop(rw);
            }
            failed += status != RECEIVEWAL_ERR_STOPPED;
            wrong_flags += fcntl(fd, F_GETFL) != flags;
        }
        unusable += receivewal_connection_usable(rw) != 1;
        REQUIRE(receivewal_detach(rw) == RECEIVEWAL_OK);
        wrong_flags += fcntl(fd, F_GETFL) != flags;
        result = PQexec(conn, i % 2 ? "IDENTIFY_SYSTEM" : "SHOW wal_segment_size");
        failed += PQresultStatus(result) != PGRES_TUPLES_OK;
        PQclear(result);
    }
    CHECK("the flags are never others", wrong_flags == 0, "%d times", wrong_flags);
    CHECK("the connection is always usable", unusable == 0, "%d times not", unusable);
    CHECK("every command succeeds", failed == 0, "%d failed: %s", failed, PQerrorMessage(conn));
    PQfinish(conn);
    return 0;
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = on_signal };

    sigaction(SIGINT, &action, NULL);
    REQUIRE(argc >= 4);
    if (strcmp(argv[1], "raw") == 0)
        return raw(argc, argv);
    if (strcmp(argv[1], "libpq") == 0)
        return with_libpq(argv);
    if (strcmp(argv[1], "again") == 0)
        return again(argv);
    if (strcmp(argv[1], "unread") == 0)
    {
        size_t all = unread(argv[2], SIZE_MAX, true);

        unread(argv[2], 0, true);
        unread(argv[2], 0, false);
        for (size_t ahead = 1; ahead < all; ahead += ahead < 20 || ahead > all - 15 ? 1 : 41)
            unread(argv[2], ahead, false);
        return 0;
    }
    return 1;
}
