/*
 * pgmoneta_like.c: a host that is built as pgmoneta is, and receives with libreceivewal. docs/pgmoneta.md quotes it.
 *
 *     pgmoneta_like FOLDER HOST PORT CA [HOST PORT CA...]
 *
 * receives from each server into FOLDER/N/wal, where N counts from 0. A HOST that begins with / is the folder of a Unix socket;
 * CA is the file with the certificate to trust, or - for a connection without TLS. Standard input takes "status", "offline N" and
 * "online N"; SIGTERM ends it.
 *
 * As in pgmoneta: the main process has an event loop and signal handlers, and overwrites its environment with a title; it forks
 * a WAL child for each server, without exec, and another one where one has died; they share memory, and stop when a flag in it
 * says so; each speaks the protocol itself and holds the socket and the SSL *; each forks a child of its own to compress a segment.
 *
 * BSD-3-Clause. See LICENSE.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <receivewal_openssl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

enum { SERVERS = 64, LENGTH = 128, TICK = 200 };

typedef struct server
{
    char host[LENGTH], port[LENGTH], ca[PATH_MAX], directory[PATH_MAX];
    atomic_bool online;
    atomic_int wal_streaming; /* the WAL child's process id; 0: there is none */
    char current_wal_filename[LENGTH], current_wal_lsn[LENGTH], flushed_lsn[LENGTH], error[1000];
    atomic_uint started, reconnects, segments, compressed, failed;
} server;

/* What pgmoneta keeps in shmem. */
static struct configuration
{
    atomic_bool running;
    int number_of_servers;
    server servers[SERVERS];
} *config;

static int signals[2];                    /* main: its handlers write the number here, as libev's do */
static _Atomic(receivewal *) current;     /* WAL child: the handle */
static int connection_fd = -1;            /* WAL child: the socket */
static SSL *ssl;                          /* WAL child: the TLS session, where there is one */
static server *self;                      /* WAL child: what it receives */

/* ------------------------------------------------------------------------------------------- connecting */

static bool send_all(const void *data, int length)
{
    return ssl != NULL ? SSL_write(ssl, data, length) == length : send(connection_fd, data, (size_t)length, MSG_NOSIGNAL) == length;
}

static bool receive_all(void *data, int length)
{
    for (int n, done = 0; done < length; done += n)
    {
        char *to = (char *)data + done;

        n = ssl != NULL ? SSL_read(ssl, to, length - done) : (int)read(connection_fd, to, (size_t)(length - done));
        if (n <= 0)
            return false;
    }
    return true;
}

static bool open_socket(const server *s)
{
    struct sockaddr_un local = { .sun_family = AF_UNIX };
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    bool connected;

    if (s->host[0] == '/')
    {
        snprintf(local.sun_path, sizeof(local.sun_path), "%.80s/.s.PGSQL.%.10s", s->host, s->port);
        connection_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        return connect(connection_fd, (struct sockaddr *)&local, sizeof(local)) == 0;
    }
    if (getaddrinfo(s->host, s->port, &hints, &found) != 0)
        return false;
    connection_fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    connected = connect(connection_fd, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
    return connected;
}

static bool start_tls(const server *s)
{
    const uint32_t request[] = { htonl(8), htonl(80877103) };
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    char answer;

    if (!send_all(request, sizeof(request)) || !receive_all(&answer, 1) || answer != 'S')
        return false;
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_load_verify_locations(context, s->ca, NULL) != 1 || (ssl = SSL_new(context)) == NULL)
        return false;
    SSL_CTX_free(context);
    return SSL_set_fd(ssl, connection_fd) == 1 && SSL_connect(ssl) == 1;
}

static void disconnect(void)
{
    SSL_free(ssl);
    ssl = NULL;
    if (connection_fd >= 0)
        close(connection_fd);
    connection_fd = -1;
}

/* What pgmoneta_server_authenticate does, but for passwords. It reads no further than AuthenticationOk. */
static bool authenticate(const server *s)
{
    static const char parameters[] = "user\0postgres\0replication\0true\0application_name\0pgmoneta\0";
    const uint32_t head[] = { htonl(8 + sizeof(parameters)), htonl(196608) };
    uint32_t length, code;
    char kind, startup[8 + sizeof(parameters)];

    disconnect();
    memcpy(startup, head, 8);
    memcpy(startup + 8, parameters, sizeof(parameters));
    if (!open_socket(s) || (s->ca[0] != '-' && !start_tls(s)) || !send_all(startup, sizeof(startup)) || !receive_all(&kind, 1) ||
        !receive_all(&length, 4) || kind != 'R' || !receive_all(&code, 4) || code != 0)
    {
        disconnect();
        return false;
    }
    fcntl(connection_fd, F_SETFL, O_NONBLOCK);
    return true;
}

/* ------------------------------------------------------------------------------------------- compressing */

/* In a process of its own. The file appears under its name only when it is whole and durable, and the plain one goes after that. */
static int compress_segment(server *s, const char *name)
{
    char plain[PATH_MAX + 30], whole[PATH_MAX + 30], work[PATH_MAX + 30], buffer[65536];
    const int directory = open(s->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int in, out, n;
    gzFile file;

    snprintf(plain, sizeof(plain), "%s/%s", s->directory, name);
    snprintf(whole, sizeof(whole), "%s/%s.gz", s->directory, name);
    snprintf(work, sizeof(work), "%s/../%s.gz", s->directory, name);
    in = open(plain, O_RDONLY | O_CLOEXEC);
    out = open(work, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (directory < 0 || in < 0 || out < 0 || (file = gzdopen(dup(out), "wb1")) == NULL)
        return 1;
    while ((n = (int)read(in, buffer, sizeof(buffer))) > 0)
        if (gzwrite(file, buffer, (unsigned)n) != n)
            return 1;
    if (n != 0 || gzclose(file) != Z_OK || fsync(out) != 0)
        return 1;
    if (rename(work, whole) != 0 || fsync(directory) != 0 || unlink(plain) != 0)
        return 1;
    s->compressed++;
    return 0;
}

/* ------------------------------------------------------------------------------------------- the WAL child */

static int on_segment(void *ctx, const receivewal_segment *segment)
{
    server *s = ctx;
    const pid_t pid = fork();

    if (pid == 0)
    {
        close(connection_fd); /* the library has closed its own descriptors in here */
        _exit(compress_segment(s, segment->name));
    }
    s->segments++;
    s->failed += pid < 0; /* it stays as it is: complete, and not compressed */
    return 0;
}

static int on_progress(void *ctx, const receivewal_progress *progress)
{
    server *s = ctx;

    snprintf(s->current_wal_filename, LENGTH, "%s.partial", progress->segment);
    receivewal_lsn_format(progress->written_lsn, s->current_wal_lsn);
    receivewal_lsn_format(progress->flushed_lsn, s->flushed_lsn);
    return 0;
}

/* Fills in the connection that authenticate has made. */
static void lend(receivewal_connection *connection)
{
    static receivewal_io io; /* it lives as long as the handle */

    connection->fd = connection_fd;
    if (ssl != NULL)
    {
        io = receivewal_openssl_io(ssl);
        connection->io = &io;
    }
}

static int on_reconnect(void *ctx, const receivewal_reconnection *why, receivewal_connection *connection)
{
    server *s = ctx;

    (void)why;
    if (!authenticate(s))
        return 0; /* connection->fd is -1: the library asks again later */
    lend(connection);
    s->reconnects++;
    return 0;
}

static void on_child(int signo)
{
    const int error = errno;
    int status;

    (void)signo;
    while (waitpid(-1, &status, WNOHANG) > 0)
        self->failed += status != 0;
    errno = error;
}

static void on_stop(int signo)
{
    receivewal *rw = atomic_load(&current);

    (void)signo;
    if (rw != NULL)
        receivewal_stop(rw);
}

/* pgmoneta_wal() */
static int wal(server *s)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal_status status;
    receivewal *rw = NULL;

    self = s;
    signal(SIGCHLD, on_child);
    signal(SIGTERM, on_stop);
    if (!authenticate(s))
        return snprintf(s->error, sizeof(s->error), "cannot connect"), 1;
    lend(&connection);
    status = receivewal_attach(&connection, &rw);
    atomic_store(&current, rw);
    if (status == RECEIVEWAL_OK)
        status = receivewal_create_slot(rw, "wal", RECEIVEWAL_SLOT_RESERVE_WAL | RECEIVEWAL_SLOT_IF_NOT_EXISTS, NULL);

    options.directory = s->directory;
    options.slot = "wal";
    options.flush_interval = 1000;
    options.progress_interval = TICK;
    options.events.ctx = s;
    options.events.segment_completed = on_segment;
    options.events.progress = on_progress;
    options.events.reconnect = on_reconnect;
    if (status == RECEIVEWAL_OK)
        status = receivewal_start(rw, &options);
    if (status == RECEIVEWAL_OK)
        while ((status = receivewal_wait(rw, TICK)) == RECEIVEWAL_PENDING)
            if (!config->running || !s->online)
                receivewal_stop(rw);

    snprintf(s->error, sizeof(s->error), "%s", status == RECEIVEWAL_ERR_STOPPED ? "" : receivewal_errmsg(rw));
    atomic_store(&current, NULL);
    receivewal_detach(rw);
    disconnect();
    while (wait(NULL) > 0 || errno == EINTR) /* for what is being compressed */
        ;
    return status == RECEIVEWAL_ERR_STOPPED ? 0 : 1;
}

/* ---------------------------------------------------------------------------------------- the main process */

static void on_signal(int signo)
{
    const unsigned char number = (unsigned char)signo;
    const int error = errno;

    if (write(signals[1], &number, 1) < 0)
        errno = EAGAIN; /* the pipe is full of signals that are yet to be handled */
    errno = error;
}

/* pgmoneta_set_proc_title(): arguments and environment are one buffer, and the title takes all of it. */
static void set_title(int argc, char **argv, const char *title)
{
    extern char **environ;
    static char *empty[] = { NULL };
    char *end = argv[argc - 1] + strlen(argv[argc - 1]) + 1;

    for (char **variable = environ; *variable != NULL; variable++)
        end = *variable + strlen(*variable) + 1;
    memset(argv[0], 0, (size_t)(end - argv[0]));
    snprintf(argv[0], (size_t)(end - argv[0]), "%s", title);
    environ = empty;
}

/* wal_streaming_cb(): a WAL child for each server that is online and has none. */
static void start_children(void)
{
    for (int i = 0; i < config->number_of_servers; i++)
    {
        server *s = &config->servers[i];
        pid_t pid;

        if (!s->online || s->wal_streaming != 0)
            continue;
        s->started++;
        pid = fork();
        if (pid == 0)
            exit(wal(s));
        s->wal_streaming = pid > 0 ? pid : 0;
    }
}

static void reap(void)
{
    pid_t pid;

    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        for (int i = 0; i < config->number_of_servers; i++)
            if (config->servers[i].wal_streaming == pid)
                config->servers[i].wal_streaming = 0;
}

static void command(const char *line)
{
    char what[LENGTH];
    int i = 0;

    if (sscanf(line, "%100s %d", what, &i) < 1 || i < 0 || i >= config->number_of_servers)
        return;
    if (strcmp(what, "offline") == 0 || strcmp(what, "online") == 0)
        config->servers[i].online = what[1] == 'n';
    for (i = 0; i < config->number_of_servers; i++)
    {
        server *s = &config->servers[i];

        printf("server=%d pid=%d file=%s written=%s flushed=%s ", i, s->wal_streaming, s->current_wal_filename,
               s->current_wal_lsn, s->flushed_lsn);
        printf("started=%u reconnects=%u segments=%u compressed=%u failed=%u error=%s\n", s->started, s->reconnects, s->segments,
               s->compressed, s->failed, s->error);
    }
    printf("end\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct itimerspec tick = { { 0, TICK * 1000000 }, { 0, 1 } };
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    const int loop = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    char line[LENGTH];
    uint64_t ticks;

    config = mmap(NULL, sizeof(*config), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (argc < 5 || (argc - 2) % 3 != 0 || (argc - 2) / 3 > SERVERS || config == MAP_FAILED ||
        pipe2(signals, O_CLOEXEC | O_NONBLOCK) != 0)
        return fprintf(stderr, "usage: pgmoneta_like FOLDER HOST PORT CA [HOST PORT CA...]\n"), 2;
    config->running = true;
    for (int i = 2; i < argc; i += 3)
    {
        server *s = &config->servers[config->number_of_servers];

        snprintf(s->host, LENGTH, "%s", argv[i]);
        snprintf(s->port, LENGTH, "%s", argv[i + 1]);
        snprintf(s->ca, PATH_MAX, "%s", argv[i + 2]);
        snprintf(s->directory, PATH_MAX, "%s/%d", argv[1], config->number_of_servers++);
        mkdir(s->directory, 0700);
        strncat(s->directory, "/wal", PATH_MAX - 1 - strlen(s->directory));
        mkdir(s->directory, 0700);
        s->online = true;
    }
    set_title(argc, argv, "pgmoneta_like: main");
    setvbuf(stdin, NULL, _IONBF, 0); /* what is not read yet shows in the loop */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGCHLD, &action, NULL);
    timerfd_settime(timer, 0, &tick, NULL);
    for (int i = 0; i < 3; i++)
    {
        struct epoll_event event = { .events = EPOLLIN, .data.fd = i == 0 ? signals[0] : i == 1 ? timer : STDIN_FILENO };

        epoll_ctl(loop, EPOLL_CTL_ADD, event.data.fd, &event);
    }

    while (config->running)
    {
        struct epoll_event event;
        unsigned char number;

        if (epoll_wait(loop, &event, 1, -1) != 1)
            continue;
        if (event.data.fd == timer && read(timer, &ticks, sizeof(ticks)) == sizeof(ticks))
            start_children();
        else if (event.data.fd == signals[0] && read(signals[0], &number, 1) == 1)
        {
            reap();
            if (number == SIGTERM)
                config->running = false;
        }
        else if (event.data.fd == STDIN_FILENO && fgets(line, sizeof(line), stdin) != NULL)
            command(line);
        else if (event.data.fd == STDIN_FILENO)
            config->running = false; /* end of input */
    }
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    command("status");
    return 0;
}
