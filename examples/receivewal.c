/*
 * receivewal.c: a program that does what pg_receivewal does, on libpq and libreceivewal.
 *
 * It takes pg_receivewal's options, writes the same files, prints the same messages and ends with the same exit
 * codes, so that scripts can call it in its place; it goes by the name that it is called by. It also shows how a host
 * uses the library: libpq connects and authenticates, libreceivewal receives on libpq's socket, and the connection is
 * libpq's again when it is done.
 *
 * BSD-3-Clause. See LICENSE.
 */
#define _DEFAULT_SOURCE 1

#include <receivewal.h>
#include <receivewal_openssl.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <libpq-fe.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "health.h"

#define RECONNECT_SECONDS 5
#define OLDEST_SERVER 90300          /* as pg_receivewal 15 to 18; newer servers are not refused */
#define POSTGRES_VERSION "18.0"      /* the pg_receivewal whose options and messages these are */
#define LIVE_LINE_LENGTH 100
#define MAX_SUFFIXES 64
#define RESTORE_FAILED 255 /* above 125 PostgreSQL gives up recovery; else it takes the file for the one after the last */

typedef struct settings
{
    const char *directory, *slot, *compress, *status_file, *metrics_file;
    const char *restore_name, *restore_target; /* NULL: nothing is to be restored */
    const char *suffixes[MAX_SUFFIXES];
    size_t suffix_count;
    receivewal_compression compression;
    int compression_level, compression_workers;
    const char *conninfo, *host, *port, *user;
    receivewal_lsn end_lsn;
    int status_interval; /* seconds */
    int wal_segsize;     /* MiB; 0: as the files say */
    const char *mirrors[16];
    size_t mirror_count;
    bool mirror_required;
    int slot_wait;       /* seconds; -1: for ever */
    int password;        /* -1: never ask, 0: ask when the server wants one, 1: ask in any case */
    bool restore, check, json, reserve_wal, create_slot, drop_slot, if_not_exists, no_loop, no_sync, synchronous, verbose, progress;
} settings;

static settings set = { .status_interval = 10 };
static const char *progname;
static int failure_code = 1; /* of the program's exit */

/* -------------------------------------------------------------------------------------------- messages */

/* The line that --progress keeps at the bottom of the terminal; "" while there is none. */
static char live_line[LIVE_LINE_LENGTH];

static void show_live_line(const char *text)
{
    if (text[0] == '\0' && live_line[0] == '\0')
        return;
    snprintf(live_line, sizeof(live_line), "%s", text);
    fprintf(stderr, "\r\033[K%s", live_line);
}

/* Held while something is written to stderr: health.c warns from a thread of its own. */
static pthread_mutex_t stderr_mutex = PTHREAD_MUTEX_INITIALIZER;

/* One message on stderr as PostgreSQL's programs write it: "name: label: text". The live line steps aside for it. */
static void message(const char *label, const char *format, va_list args)
{
    char live[LIVE_LINE_LENGTH], text[8192];
    size_t length;

    pthread_mutex_lock(&stderr_mutex);
    memcpy(live, live_line, sizeof(live));
    show_live_line("");
    vsnprintf(text, sizeof(text), format, args);
    length = strlen(text);
    if (length > 0 && text[length - 1] == '\n') /* libpq's messages end with one */
        text[length - 1] = '\0';
    fprintf(stderr, "%s: %s%s\n", progname, label, text);
    show_live_line(live);
    pthread_mutex_unlock(&stderr_mutex);
    if (strcmp(label, "error: ") == 0)
        health_error(text);
}

static void show_progress(const char *text)
{
    pthread_mutex_lock(&stderr_mutex);
    show_live_line(text);
    pthread_mutex_unlock(&stderr_mutex);
}

static void say(const char *label, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    message(label, format, args);
    va_end(args);
}

_Noreturn static void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    message("error: ", format, args);
    va_end(args);
    exit(failure_code);
}

/* For a command line that is wrong. */
_Noreturn static void die_with_hint(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (format != NULL)
        message("error: ", format, args);
    va_end(args);
    say("hint: ", "Try \"%s --help\" for more information.", progname);
    exit(failure_code);
}

/* The last error of a handle, or with NULL of a call that had none, with what the server added to it. */
static void say_error(receivewal *rw)
{
    say("error: ", "%s", receivewal_errmsg(rw));
    if (receivewal_errdetail(rw)[0] != '\0')
        say("detail: ", "%s", receivewal_errdetail(rw));
    if (receivewal_errhint(rw)[0] != '\0')
        say("hint: ", "%s", receivewal_errhint(rw));
}

/* --------------------------------------------------------------------------------------------- signals */

/* What the handler touches. It may run on any thread of the process, so plain sig_atomic_t would not do. */
static atomic_bool stop_asked;
static _Atomic(receivewal *) receiving; /* the handle whose receive is to be stopped */
static _Atomic time_t stop_time;        /* when the first signal came, by the monotonic clock; 0: none has */
static int wake_pipe[2];                /* has a byte to read once a stop was asked for */

#define SAME_SIGNAL 1 /* seconds in which another signal is the same request: timeout(1) signals the program and then its group */

static void on_signal(int signo)
{
    int saved_errno = errno;
    receivewal *rw = atomic_load(&receiving);

    struct timespec now = { 0 };
    time_t none = 0;

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!atomic_compare_exchange_strong(&stop_time, &none, now.tv_sec + 1) && now.tv_sec + 1 > none + SAME_SIGNAL)
    {
        signal(signo, SIG_DFL);
        raise(signo); /* once this handler has returned */
    }
    atomic_store(&stop_asked, true);
    if (rw != NULL)
        receivewal_stop(rw);
    if (write(wake_pipe[1], "", 1) < 0)
    {
        /* Nothing to be done about it here; only a sleep would end later. */
    }
    errno = saved_errno;
}

/*
 * SIGINT and SIGTERM end the program once what was received is safe. Another one, some time later, ends it on the spot.
 * SA_ONSTACK: the handler may be called on a thread of the library's core, whose stacks are small.
 */
static void catch_signals(void)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };

    if (pipe(wake_pipe) != 0)
        die("could not create pipe: %s", strerror(errno));
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Waits, but not longer than until a stop is asked for. */
static void sleep_unless_stopped(int seconds)
{
    struct pollfd wake = { .fd = wake_pipe[0], .events = POLLIN };

    while (poll(&wake, 1, seconds * 1000) < 0 && errno == EINTR && !atomic_load(&stop_asked))
        continue;
}

/* With --verbose, says once that a signal is the reason for what follows. */
static void announce_stop(void)
{
    static bool announced;

    if (set.verbose && !announced && atomic_load(&stop_asked))
    {
        announced = true;
        say("", "received interrupt signal, exiting");
    }
}

/* ------------------------------------------------------------------------------------------ connection */

/* Asks for the password on the terminal, without echo; on standard input and error where there is no terminal. NULL at
 * the end of the input. */
static char *ask_password(void)
{
    static char password[1024];
    struct termios normal, silent;
    FILE *in = fopen("/dev/tty", "r"), *out = fopen("/dev/tty", "w");
    bool have_tty = in != NULL && out != NULL, echo_off, answered;

    if (!have_tty)
    {
        if (in != NULL)
            fclose(in);
        if (out != NULL)
            fclose(out);
        in = stdin;
        out = stderr;
    }
    echo_off = have_tty && tcgetattr(fileno(in), &normal) == 0;
    if (echo_off)
    {
        silent = normal;
        silent.c_lflag &= ~(tcflag_t) ECHO;
        tcsetattr(fileno(in), TCSAFLUSH, &silent);
    }
    fputs("Password: ", out);
    fflush(out);
    answered = fgets(password, sizeof(password), in) != NULL;
    if (answered)
        password[strcspn(password, "\r\n")] = '\0';
    if (echo_off)
        tcsetattr(fileno(in), TCSAFLUSH, &normal);
    fputs("\n", out);
    if (have_tty)
    {
        fclose(in);
        fclose(out);
    }
    return answered ? password : NULL;
}

/* Connects with libpq, asking for a password where one is wanted. NULL: not enough memory. */
static PGconn *connect_with_password(const char **keywords, const char **values, int count)
{
    static const char *password; /* asked for once, used for every connection */
    bool ask = set.password == 1 && password == NULL;

    for (;;)
    {
        PGconn *conn;

        if (ask && (password = ask_password()) == NULL)
            set.password = -1; /* nobody is there to answer; pg_receivewal would ask for ever */
        keywords[count] = password != NULL ? "password" : NULL;
        values[count] = password;
        conn = PQconnectdbParams(keywords, values, 1);
        ask = conn != NULL && PQstatus(conn) == CONNECTION_BAD && PQconnectionNeedsPassword(conn) && set.password != -1;
        if (!ask)
            return conn;
        PQfinish(conn);
    }
}

/* Ends the program where the server is one that no waiting makes usable. */
static void check_server(PGconn *conn)
{
    const char *version = PQparameterStatus(conn, "server_version");
    const char *integer_datetimes = PQparameterStatus(conn, "integer_datetimes");

    if (PQserverVersion(conn) < OLDEST_SERVER)
        die("incompatible server version %s; client does not support streaming from server versions older than %s",
            version != NULL ? version : "'unknown'", "9.3");
    if (integer_datetimes == NULL)
        die("could not determine server setting for integer_datetimes");
    if (strcmp(integer_datetimes, "on") != 0)
        die("integer_datetimes compile flag does not match server");
}

/*
 * Connects for physical replication. What the command line says outranks the connection string; the database name
 * "replication" is for .pgpass and proxies only and gives way to the string's. Exits where the string is wrong or the
 * server cannot be used; NULL, after a message, where it cannot be reached now.
 */
static PGconn *connect_to_server(void)
{
    PQconninfoOption *parsed = NULL, *option;
    const char **keywords, **values;
    char *problem = NULL;
    int count = 0, room = 9; /* what is added to the string's settings, the password and the closing NULL */
    PGconn *conn;

    if (set.conninfo != NULL && (parsed = PQconninfoParse(set.conninfo, &problem)) == NULL)
        die("%s", problem != NULL ? problem : "out of memory");
    for (option = parsed; option != NULL && option->keyword != NULL; option++)
        room++;
    keywords = calloc((size_t) room, sizeof(*keywords));
    values = calloc((size_t) room, sizeof(*values));
    if (keywords == NULL || values == NULL)
        die("out of memory");

#define ADD(keyword, value) (keywords[count] = (keyword), values[count] = (value), count++)
    /* libpq expands only the first dbname as a connection string; putting ours first keeps the string's literal. */
    ADD("dbname", "replication");
    for (option = parsed; option != NULL && option->keyword != NULL; option++)
        if (option->val != NULL && option->val[0] != '\0')
            ADD(option->keyword, option->val);
    ADD("replication", "true");
    ADD("fallback_application_name", progname);
    if (set.host != NULL)
        ADD("host", set.host);
    if (set.user != NULL)
        ADD("user", set.user);
    if (set.port != NULL)
        ADD("port", set.port);
#undef ADD

    conn = connect_with_password(keywords, values, count);
    free(keywords);
    free(values);
    PQconninfoFree(parsed);
    if (conn == NULL)
        die("could not connect to server");
    if (PQstatus(conn) != CONNECTION_OK)
    {
        say("error: ", "%s", PQerrorMessage(conn));
        PQfinish(conn);
        return NULL;
    }
    check_server(conn);
    return conn;
}

/*
 * Lends the connection to the library; exits where that cannot work. A TLS session lives in libpq, not in its socket,
 * so the library reads and writes through it. GSSAPI's encryption libpq keeps to itself.
 */
static receivewal *attach(PGconn *conn)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_io io;
    receivewal *rw;

    if (PQsslInUse(conn))
    {
        SSL *ssl = PQsslStruct(conn, "OpenSSL");

        if (ssl == NULL)
            die("the connection is encrypted with TLS by a library other than OpenSSL, which is not supported");
        io = receivewal_openssl_io(ssl);
        connection.io = &io;
    }
    if (PQgssEncInUse(conn))
    {
        say("error: ", "the connection is encrypted with GSSAPI, which is not supported");
        say("hint: ", "Connect with gssencmode=disable.");
        exit(1);
    }
    connection.fd = PQsocket(conn);
    connection.server_version = PQserverVersion(conn);
    if (receivewal_attach(&connection, &rw) != RECEIVEWAL_OK)
    {
        say_error(NULL);
        exit(1);
    }
    return rw;
}

/* ------------------------------------------------------------------------------------------- receiving */

/* "48.2 MB" */
static const char *human_size(double bytes, char buffer[16])
{
    static const char *const units[] = { "bytes", "kB", "MB", "GB", "TB" };
    size_t unit = 0;

    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(buffer, 16, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return buffer;
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

/* --progress: "0/5A000000, 48.2 MB/s, 2.1 GB behind, 0:00:44 to catch up" */
static int on_progress(void *ctx, const receivewal_progress *progress)
{
    static double last_time, received_rate, lag_rate; /* seconds; bytes per second, averaged over a few events */
    static uint64_t last_bytes, last_lag;
    static int events; /* of this receive */
    uint64_t lag = progress->server_lsn > progress->written_lsn ? progress->server_lsn - progress->written_lsn : 0;
    double now = seconds_now(), elapsed = now - last_time;
    char position[RECEIVEWAL_LSN_LEN], rate[16], behind[16], line[LIVE_LINE_LENGTH];
    int length;

    (void) ctx;
    announce_stop();
    if (progress->bytes < last_bytes) /* a new receive, after a lost connection */
        events = 0;
    if (events == 0 || elapsed > 0.1)
    {
        double weight = events <= 1 ? 1 : 0.4;

        received_rate += weight * (events == 0 ? 0 : (double) (progress->bytes - last_bytes) / elapsed - received_rate);
        lag_rate += weight * (events == 0 ? 0 : ((double) lag - (double) last_lag) / elapsed - lag_rate);
        last_time = now;
        last_bytes = progress->bytes;
        last_lag = lag;
        events++;
    }

    length = snprintf(line, sizeof(line), "%s, %s/s, ", receivewal_lsn_format(progress->written_lsn, position),
                      human_size(received_rate, rate));
    if (lag == 0)
        snprintf(line + length, sizeof(line) - (size_t) length, "up to date");
    else if (lag_rate < 0 && (double) lag / -lag_rate < 360000)
    {
        unsigned left = (unsigned) ((double) lag / -lag_rate);

        snprintf(line + length, sizeof(line) - (size_t) length, "%s behind, %u:%02u:%02u to catch up",
                 human_size((double) lag, behind), left / 3600, left / 60 % 60, left % 60);
    }
    else
        snprintf(line + length, sizeof(line) - (size_t) length, "%s behind", human_size((double) lag, behind));
    show_progress(line);
    return 0;
}

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    (void) ctx;
    announce_stop();
    if (level >= RECEIVEWAL_LOG_ERROR)
        return; /* the receive's result brings it */
    if (level >= RECEIVEWAL_LOG_WARNING)
        say("warning: ", "%s", text);
    else if (level >= RECEIVEWAL_LOG_INFO || set.verbose)
        say("", "%s", text);
}

/* Receives on a connection until something ends it, and closes the connection. */
static receivewal_status receive(PGconn *conn)
{
    /* How far the connections before this one came. The directory does not tell if they were lost before any WAL came. */
    static receivewal_progress last = RECEIVEWAL_PROGRESS_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal *rw = attach(conn);
    receivewal_status status = RECEIVEWAL_ERR_STOPPED;

    options.directory = set.directory;
    options.slot = set.slot;
    options.start_lsn = last.flushed_lsn != 0 ? last.flushed_lsn : last.start_lsn;
    options.start_timeline = last.timeline;
    options.end_lsn = set.end_lsn;
    options.status_interval = set.status_interval * 1000;
    options.synchronous = set.synchronous;
    options.no_sync = set.no_sync;
    options.mirrors = set.mirrors;
    options.mirror_count = set.mirror_count;
    options.mirror_required = set.mirror_required;
    options.slot_wait = set.slot_wait < 0 ? -1 : set.slot_wait * 1000;
    options.compression = set.compression;
    options.compression_level = set.compression_level;
    options.compression_workers = set.compression_workers;
    options.suffixes = set.suffixes;
    options.suffix_count = set.suffix_count;
    options.events.log = on_log;
    if (set.progress && isatty(STDERR_FILENO))
        options.events.progress = on_progress;

    health_receives(rw);
    atomic_store(&receiving, rw);
    if (!atomic_load(&stop_asked)) /* a signal that came before the handler could see rw */
        status = receivewal_receive(rw, &options);
    atomic_store(&receiving, NULL);
    if (receivewal_get_progress(rw, &progress) == RECEIVEWAL_OK && (progress.timeline != 0 || last.start_lsn == 0))
        last = progress;

    health_receives(NULL);
    show_progress("");
    announce_stop();
    if (status != RECEIVEWAL_OK && status != RECEIVEWAL_ERR_STOPPED)
        say_error(rw);
    receivewal_detach(rw);
    PQfinish(conn);
    return status;
}

/*
 * Whether waiting may help. pg_receivewal tries again for ever, also where the directory and the server do not fit together any
 * more; this program ends there, so that somebody looks.
 */
static bool may_pass(receivewal_status status)
{
    switch (status)
    {
        case RECEIVEWAL_ERR_ENCRYPTED:
        case RECEIVEWAL_ERR_WAL_REMOVED:
        case RECEIVEWAL_ERR_UNSUPPORTED:
        case RECEIVEWAL_ERR_NO_DIRECTORY:
        case RECEIVEWAL_ERR_GAP:
        case RECEIVEWAL_ERR_FOREIGN:
        case RECEIVEWAL_ERR_TIMELINE:
        case RECEIVEWAL_ERR_INTERNAL:
            return false;
        default:
            return status >= RECEIVEWAL_ERR_BAD_FD;
    }
}

/* Receives on one connection after another. Returns the program's exit code. */
static int receive_until_done(PGconn *conn)
{
    for (;;)
    {
        receivewal_status status = conn != NULL ? receive(conn) : RECEIVEWAL_ERR_CONNECTION;

        if (status == RECEIVEWAL_OK || status == RECEIVEWAL_ERR_STOPPED)
            return 0;
        if (atomic_load(&stop_asked)) /* losing the connection while stopping loses nothing; a failed write would */
            return status == RECEIVEWAL_ERR_CONNECTION ? 0 : 1;
        if (!may_pass(status))
            return 1;
        if (set.no_loop)
            die("disconnected");
        say("", "disconnected; waiting %d seconds to try again", RECONNECT_SECONDS);
        sleep_unless_stopped(RECONNECT_SECONDS);
        announce_stop();
        if (atomic_load(&stop_asked))
            return 0;
        conn = connect_to_server();
    }
}

/* --create-slot and --drop-slot. Returns the program's exit code. */
static int change_slot(PGconn *conn)
{
    receivewal *rw = attach(conn);
    receivewal_status status;

    if (set.verbose)
        say("", "%s replication slot \"%s\"", set.drop_slot ? "dropping" : "creating", set.slot);
    if (set.drop_slot)
        status = receivewal_drop_slot(rw, set.slot, 0);
    else
        status = receivewal_create_slot(rw, set.slot, (set.if_not_exists ? RECEIVEWAL_SLOT_IF_NOT_EXISTS : 0) |
                                        (set.reserve_wal ? RECEIVEWAL_SLOT_RESERVE_WAL : 0), NULL);
    if (status != RECEIVEWAL_OK)
        say_error(rw);
    receivewal_detach(rw);
    PQfinish(conn);
    return status == RECEIVEWAL_OK ? 0 : 1;
}

/* ---------------------------------------------------------------------------------------------- checking */

static const char *problem_name(receivewal_problem_kind kind)
{
    switch (kind)
    {
        case RECEIVEWAL_PROBLEM_MISSING: return "missing";
        case RECEIVEWAL_PROBLEM_WRONG_SIZE: return "wrong_size";
        case RECEIVEWAL_PROBLEM_WRONG_PAGE: return "wrong_page";
        case RECEIVEWAL_PROBLEM_DAMAGED: return "damaged";
        case RECEIVEWAL_PROBLEM_NO_HISTORY: return "no_history";
        case RECEIVEWAL_PROBLEM_BAD_HISTORY: return "bad_history";
        case RECEIVEWAL_PROBLEM_FOREIGN_FILE: return "foreign_file";
        case RECEIVEWAL_PROBLEM_LEFTOVER: return "leftover";
    }
    return "unknown";
}

static int on_problem(void *ctx, const receivewal_problem *problem)
{
    char begin[RECEIVEWAL_LSN_LEN], end[RECEIVEWAL_LSN_LEN];
    bool *first = ctx;

    receivewal_lsn_format(problem->lsn, begin);
    receivewal_lsn_format(problem->end_lsn, end);
    if (set.json)
    {
        if (*first)
            printf("{\n  \"problems\": [");
        printf("%s\n    {\"kind\": \"%s\", \"file\": ", *first ? "" : ",", problem_name(problem->kind));
        json_string(stdout, problem->file);
        printf(", \"timeline\": %u, \"lsn\": \"%s\", \"end_lsn\": \"%s\", \"text\": ", (unsigned) problem->timeline, begin, end);
        json_string(stdout, problem->text);
        printf("}");
    }
    else if (problem->end_lsn != 0)
        printf("%s: %s (timeline %u, %s to %s)\n", problem_name(problem->kind), problem->text, (unsigned) problem->timeline, begin, end);
    else
        printf("%s: %s\n", problem_name(problem->kind), problem->text);
    *first = false;
    return 0;
}

/* --check. Returns the program's exit code: 0 if the directory is sound, 2 if it has problems. */
static int check_directory(void)
{
    receivewal_check_options options = RECEIVEWAL_CHECK_OPTIONS_INIT;
    receivewal_check check = RECEIVEWAL_CHECK_INIT;
    char oldest[RECEIVEWAL_LSN_LEN], next[RECEIVEWAL_LSN_LEN];
    bool first = true;

    options.segment_size = (uint32_t) set.wal_segsize << 20;
    options.decode = 1;
    options.suffixes = set.suffixes;
    options.suffix_count = set.suffix_count;
    options.ctx = &first;
    options.problem = on_problem;
    if (receivewal_check_directory(set.directory, &options, &check) != RECEIVEWAL_OK)
    {
        say_error(NULL);
        return 1;
    }
    receivewal_lsn_format(check.oldest_lsn, oldest);
    receivewal_lsn_format(check.lsn, next);
    if (set.json)
        printf("%s],\n  \"problem_count\": %llu,\n  \"leftover_count\": %llu,\n  \"segments\": %llu,\n  \"segment_size\": %u,\n"
               "  \"segment_size_assumed\": %s,\n  \"system_identifier\": \"%llu\",\n  \"oldest_lsn\": \"%s\",\n  \"next_lsn\": \"%s\",\n  \"timeline\": %u\n}\n",
               first ? "{\n  \"problems\": [" : "\n  ", (unsigned long long) check.problems, (unsigned long long) check.leftovers,
               (unsigned long long) check.segments, (unsigned) check.segment_size, check.segment_size_assumed ? "true" : "false",
               (unsigned long long) check.system_identifier, oldest, next, (unsigned) check.timeline);
    else if (check.lsn == 0 && first)
        printf("there is no WAL in \"%s\"\n", set.directory);
    else
        printf("%llu complete segments of %u bytes%s from %s, going on at %s (timeline %u), system identifier %llu: %llu problems\n",
               (unsigned long long) check.segments, (unsigned) check.segment_size,
               check.segment_size_assumed ? " (assumed, as no file tells: see --wal-segsize)" : "", oldest, next, (unsigned) check.timeline,
               (unsigned long long) check.system_identifier, (unsigned long long) check.problems);
    return check.problems == 0 ? 0 : 2;
}

/* --restore. Returns the program's exit code, for PostgreSQL: 1 at the end of the WAL, RESTORE_FAILED where that can't be told. */
static int restore(void)
{
    receivewal_status status = receivewal_restore(set.directory, set.restore_name, set.restore_target);

    if (status == RECEIVEWAL_OK)
        return 0;
    if (status != RECEIVEWAL_ERR_NO_FILE || set.verbose) /* PostgreSQL asks for many files that are not there */
        say_error(NULL);
    return status == RECEIVEWAL_ERR_NO_FILE ? 1 : RESTORE_FAILED;
}

/* --------------------------------------------------------------------------------------------- options */

static void usage(void)
{
    printf("%s receives PostgreSQL streaming write-ahead logs.\n\n", progname);
    printf("Usage:\n  %s [OPTION]...\n", progname);
    printf("\nOptions:\n"
           "  -D, --directory=DIR    receive write-ahead log files into this directory\n"
           "  -E, --endpos=LSN       exit after receiving the specified LSN\n"
           "      --if-not-exists    do not error if slot already exists when creating a slot\n"
           "  -n, --no-loop          do not loop on connection lost\n"
           "      --no-sync          do not wait for changes to be written safely to disk\n"
           "  -s, --status-interval=SECS\n"
           "                         time between status packets sent to server (default: %d)\n"
           "  -S, --slot=SLOTNAME    replication slot to use\n"
           "      --synchronous      flush write-ahead log immediately after writing\n"
           "  -v, --verbose          output verbose messages\n"
           "  -V, --version          output version information, then exit\n"
           "  -Z, --compress=METHOD[:DETAIL]\n"
           "                         compress as specified\n"
           "  -?, --help             show this help, then exit\n",
           set.status_interval);
    printf("\nConnection options:\n"
           "  -d, --dbname=CONNSTR   connection string\n"
           "  -h, --host=HOSTNAME    database server host or socket directory\n"
           "  -p, --port=PORT        database server port number\n"
           "  -U, --username=NAME    connect as specified database user\n"
           "  -w, --no-password      never prompt for password\n"
           "  -W, --password         force password prompt (should happen automatically)\n");
    printf("\nOptional actions:\n"
           "      --create-slot      create a new replication slot (for the slot's name see --slot)\n"
           "      --drop-slot        drop the replication slot (for the slot's name see --slot)\n");
    printf("\nNot in PostgreSQL's pg_receivewal:\n"
           "      --check            check the directory for holes and damage instead, without a server; exit\n"
           "                         with 0 if it is sound, 2 if it has problems, 1 if it cannot be read\n"
           "      --compress-workers=N\n"
           "                         compress N segments at a time (default: 1)\n"
           "      --json             print the result of --check as JSON\n"
           "      --metrics-file=FILE\n"
           "                         write metrics there once a second, for Prometheus (node_exporter's textfile collector)\n"
           "      --mirror=DIR       write into this directory as well, in step with the first; can be given more\n"
           "                         than once. One that fails is tried again, and gets what it has missed\n"
           "      --mirror-required  stop where a mirror fails; tell the server that WAL is flushed only once it is\n"
           "                         so in each of them\n"
           "      --progress         show position, speed and lag on the terminal\n"
           "      --reserve-wal      with --create-slot: keep write-ahead log from now on, not only from the first use on\n"
           "      --restore          write a file of the directory to a path, for restore_command:\n"
           "                         %s --restore -D DIR %%f %%p; exit with 0 if it is there, 1 if it\n"
           "                         is not, 255 on any error\n"
           "      --slot-wait=SECS   wait so long for a slot that is in use, -1: for ever (default: 0)\n"
           "      --status-file=FILE write position, speed, lag and state there once a second, as JSON\n"
           "      --suffix=SUFFIX    a complete segment's file may also end in SUFFIX (\".enc\"); may be repeated\n"
           "      --wal-segsize=SIZE\n"
           "                         size of WAL segments for --check, in megabytes (default: as the files say)\n",
           progname);
    printf("\nThis is the receivewal program of libreceivewal %s.\n", receivewal_version_string());
}

static void version(void)
{
    /* Callers of pg_receivewal read PostgreSQL's version from the third word. */
    if (strcmp(progname, "pg_receivewal") == 0)
        printf("pg_receivewal (PostgreSQL) %s (libreceivewal %s)\n", POSTGRES_VERSION, receivewal_version_string());
    else
        printf("%s (libreceivewal) %s\n", progname, receivewal_version_string());
}

/* The whole number in an option's argument, blanks around it allowed. */
static int number_option(const char *text, const char *option, int min, int max)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    while (isspace((unsigned char) *end))
        end++;
    if (*end != '\0')
        die("invalid value \"%s\" for option %s", text, option);
    if (errno == ERANGE || value < min || value > max)
        die("%s must be in range %d..%d", option, min, max);
    return (int) value;
}

#define BAD_COMPRESSION "invalid compression specification: "

/* What the DETAIL of --compress=METHOD:DETAIL asks for. */
typedef struct compression
{
    long level, worker_count;
    bool workers, long_distance;
} compression;

static long compression_number(const char *option, const char *value)
{
    char *end;
    long number;

    if (value == NULL)
        die(BAD_COMPRESSION "compression option \"%s\" requires a value", option);
    number = strtol(value, &end, 10);
    if (end == value || *end != '\0')
        die(BAD_COMPRESSION "value for compression option \"%s\" must be an integer", option);
    return number;
}

static bool is_boolean(const char *value)
{
    static const char *const booleans[] = { "yes", "no", "on", "off", "1", "0" };

    for (size_t i = 0; i < sizeof(booleans) / sizeof(booleans[0]); i++)
        if (strcasecmp(value, booleans[i]) == 0)
            return true;
    return false;
}

/* Reads DETAIL: a level alone, or a list of level=N, workers=N and long[=BOOLEAN]. Exits if it is anything else. */
static void read_compression_detail(char *detail, compression *wanted)
{
    char *end, *next, *value;
    long number = strtol(detail, &end, 10);

    if (end != detail && *end == '\0')
    {
        wanted->level = number;
        return;
    }
    for (char *item = detail; item != NULL; item = next)
    {
        if ((next = strchr(item, ',')) != NULL)
            *next++ = '\0';
        if ((value = strchr(item, '=')) != NULL)
            *value++ = '\0';
        if (strcmp(item, "level") == 0)
            wanted->level = compression_number(item, value);
        else if (strcmp(item, "workers") == 0)
        {
            wanted->worker_count = compression_number(item, value);
            wanted->workers = true;
        }
        else if (strcmp(item, "long") == 0)
        {
            if (value != NULL && !is_boolean(value))
                die(BAD_COMPRESSION "value for compression option \"%s\" must be a Boolean value", item);
            wanted->long_distance = true;
        }
        else if (item[0] == '\0')
            die(BAD_COMPRESSION "found empty string where a compression option was expected");
        else
            die(BAD_COMPRESSION "unrecognized compression option: \"%s\"", item);
    }
}

/*
 * Reads the argument of --compress: METHOD[:DETAIL], or a number alone, which is a level of gzip, or none if it is 0. PostgreSQL's
 * zstd has more levels than ours.
 */
static void read_compression(const char *argument)
{
    static const struct { const char *name; long min, max, normal; /* levels */ } methods[] = {
        { "none", 0, 0, 0 }, { "gzip", 1, 9, -1 }, { "lz4", 1, 12, 0 }, { "zstd", 1, 19, 1 }
    };
    enum { NONE = RECEIVEWAL_COMPRESSION_NONE, GZIP, LZ4, ZSTD, UNKNOWN };
    char *text = strdup(argument), *detail, *end;
    const char *name = text;
    compression wanted = { 0, 0, false, false };
    int method = NONE;
    long number = strtol(argument, &end, 10);

    if (text == NULL)
        die("out of memory");
    if (*end == '\0')
    {
        name = number != 0 ? "gzip" : "none";
        detail = number != 0 ? text : NULL;
    }
    else if ((detail = strchr(text, ':')) != NULL)
        *detail++ = '\0';

    while (method < UNKNOWN && strcmp(methods[method].name, name) != 0)
        method++;
    if (method == UNKNOWN)
        die("unrecognized compression algorithm: \"%s\"", name);

    wanted.level = methods[method].normal;
    if (detail != NULL)
        read_compression_detail(detail, &wanted);
    if (method == NONE && wanted.level != 0)
        die(BAD_COMPRESSION "compression algorithm \"%s\" does not accept a compression level", name);
    if ((wanted.level < methods[method].min || wanted.level > methods[method].max) &&
        wanted.level != methods[method].normal)
        die(BAD_COMPRESSION "compression algorithm \"%s\" expects a compression level between %ld and %ld "
            "(default at %ld)", name, methods[method].min, methods[method].max, methods[method].normal);
    if (wanted.workers && method != ZSTD)
        die(BAD_COMPRESSION "compression algorithm \"%s\" does not accept a worker count", name);
    if (wanted.long_distance && method != ZSTD)
        die(BAD_COMPRESSION "compression algorithm \"%s\" does not support long-distance mode", name);
    if (wanted.long_distance)
        die(BAD_COMPRESSION "this program does not support long-distance mode");
    if (wanted.workers && (wanted.worker_count < 0 || wanted.worker_count > 1024))
        die(BAD_COMPRESSION "the worker count must be in range 0..1024");
    set.compression = (receivewal_compression) method;
    set.compression_level = wanted.level == methods[method].normal ? 0 : (int) wanted.level;
    if (wanted.workers)
        set.compression_workers = (int) wanted.worker_count;
    free(text);
}

enum { OPT_CREATE_SLOT = 256, OPT_DROP_SLOT, OPT_IF_NOT_EXISTS, OPT_SYNCHRONOUS, OPT_NO_SYNC, OPT_PROGRESS, OPT_CHECK, OPT_JSON,
       OPT_RESTORE, OPT_SUFFIX, OPT_COMPRESS_WORKERS, OPT_WAL_SEGSIZE, OPT_MIRROR, OPT_MIRROR_REQUIRED, OPT_STATUS_FILE, OPT_METRICS_FILE, OPT_SLOT_WAIT, OPT_RESERVE_WAL };

#define SHORT_OPTIONS "d:D:E:h:np:s:S:U:vwWZ:"

/* pg_receivewal's. */
static const struct option long_options[] = {
    { "help", no_argument, NULL, '?' },
    { "version", no_argument, NULL, 'V' },
    { "directory", required_argument, NULL, 'D' },
    { "dbname", required_argument, NULL, 'd' },
    { "endpos", required_argument, NULL, 'E' },
    { "host", required_argument, NULL, 'h' },
    { "port", required_argument, NULL, 'p' },
    { "username", required_argument, NULL, 'U' },
    { "no-loop", no_argument, NULL, 'n' },
    { "no-password", no_argument, NULL, 'w' },
    { "password", no_argument, NULL, 'W' },
    { "status-interval", required_argument, NULL, 's' },
    { "slot", required_argument, NULL, 'S' },
    { "verbose", no_argument, NULL, 'v' },
    { "compress", required_argument, NULL, 'Z' },
    { "create-slot", no_argument, NULL, OPT_CREATE_SLOT },
    { "drop-slot", no_argument, NULL, OPT_DROP_SLOT },
    { "if-not-exists", no_argument, NULL, OPT_IF_NOT_EXISTS },
    { "synchronous", no_argument, NULL, OPT_SYNCHRONOUS },
    { "no-sync", no_argument, NULL, OPT_NO_SYNC },
    { NULL, 0, NULL, 0 }
};

/* Our own. They are not abbreviated, so that what abbreviates one of pg_receivewal's goes on doing so. */
static const struct option own_options[] = {
    { "progress", no_argument, NULL, OPT_PROGRESS },
    { "check", no_argument, NULL, OPT_CHECK },
    { "json", no_argument, NULL, OPT_JSON },
    { "status-file", required_argument, NULL, OPT_STATUS_FILE },
    { "metrics-file", required_argument, NULL, OPT_METRICS_FILE },
    { "slot-wait", required_argument, NULL, OPT_SLOT_WAIT },
    { "reserve-wal", no_argument, NULL, OPT_RESERVE_WAL },
    { "wal-segsize", required_argument, NULL, OPT_WAL_SEGSIZE },
    { "mirror", required_argument, NULL, OPT_MIRROR },
    { "mirror-required", no_argument, NULL, OPT_MIRROR_REQUIRED },
    { "restore", no_argument, NULL, OPT_RESTORE },
    { "suffix", required_argument, NULL, OPT_SUFFIX },
    { "compress-workers", required_argument, NULL, OPT_COMPRESS_WORKERS },
    { NULL, 0, NULL, 0 }
};

static void set_own_option(int option, const char *value)
{
    switch (option)
    {
        case OPT_PROGRESS: set.progress = true; break;
        case OPT_CHECK: set.check = true; break;
        case OPT_JSON: set.json = true; break;
        case OPT_STATUS_FILE: set.status_file = value; break;
        case OPT_METRICS_FILE: set.metrics_file = value; break;
        case OPT_SLOT_WAIT: set.slot_wait = number_option(value, "--slot-wait", -1, INT_MAX / 1000); break;
        case OPT_RESERVE_WAL: set.reserve_wal = true; break;
        case OPT_WAL_SEGSIZE:
            set.wal_segsize = number_option(value, "--wal-segsize", 1, 1024);
            if ((set.wal_segsize & (set.wal_segsize - 1)) != 0)
                die("argument of %s must be a power of two between 1 and 1024", "--wal-segsize"); /* as initdb */
            break;
        case OPT_MIRROR:
            if (set.mirror_count == sizeof(set.mirrors) / sizeof(set.mirrors[0]))
                die("too many mirrors");
            set.mirrors[set.mirror_count++] = value;
            break;
        case OPT_MIRROR_REQUIRED: set.mirror_required = true; break;
        case OPT_RESTORE: set.restore = true; break;
        case OPT_SUFFIX:
            if (set.suffix_count == MAX_SUFFIXES)
                die("too many suffixes");
            set.suffixes[set.suffix_count++] = value;
            break;
        case OPT_COMPRESS_WORKERS: set.compression_workers = number_option(value, "--compress-workers", 1, 1024); break;
    }
}

/* Whether the value of this argument, one of pg_receivewal's options, is the next argument. */
static bool takes_next(const char *argument)
{
    if (argument[1] == '-')
    {
        for (const struct option *o = long_options; o->name != NULL; o++)
            if (o->has_arg == required_argument && strncmp(o->name, argument + 2, strlen(argument + 2)) == 0)
                return true;
        return false;
    }
    for (const char *c = argument + 1; *c != '\0'; c++)
    {
        const char *option = strchr(SHORT_OPTIONS, *c);

        if (option != NULL && option[1] == ':')
            return c[1] == '\0';
    }
    return false;
}

/* Takes our own options out of the arguments. Returns how many are left. */
static int read_own_options(int argc, char **argv)
{
    int left = 1;
    bool options = true; /* no "--" yet */

    for (int i = 1; i < argc; i++)
    {
        const char *name = argv[i] + 2, *value;
        const struct option *own = own_options;

        if (strcmp(argv[i], "--") == 0)
            options = false;
        if (!options || argv[i][0] != '-' || argv[i][1] == '\0')
        {
            argv[left++] = argv[i];
            continue;
        }
        value = argv[i][1] == '-' ? strchr(name, '=') : NULL;
        while (own->name != NULL && (argv[i][1] != '-' || strncmp(name, own->name, strlen(own->name)) != 0 ||
                                     (name[strlen(own->name)] != '\0' && name[strlen(own->name)] != '=')))
            own++;
        if (own->name == NULL)
        {
            const bool pair = takes_next(argv[i]) && i + 1 < argc;

            argv[left++] = argv[i];
            if (pair)
                argv[left++] = argv[++i];
            continue;
        }
        if (own->has_arg == no_argument && value != NULL)
        {
            fprintf(stderr, "%s: option '--%s' doesn't allow an argument\n", argv[0], own->name);
            die_with_hint(NULL);
        }
        if (own->has_arg == required_argument && value == NULL && i + 1 == argc)
        {
            fprintf(stderr, "%s: option '--%s' requires an argument\n", argv[0], own->name);
            die_with_hint(NULL);
        }
        set_own_option(own->val, own->has_arg == no_argument ? NULL : value != NULL ? value + 1 : argv[++i]);
    }
    argv[left] = NULL;
    return left;
}

static void read_options(int argc, char **argv)
{
    unsigned high, low;
    int c;

    argc = read_own_options(argc, argv);
    while ((c = getopt_long(argc, argv, SHORT_OPTIONS, long_options, NULL)) != -1)
        switch (c)
        {
            case 'd': set.conninfo = optarg; break;
            case 'D': set.directory = optarg; break;
            case 'E':
                /* Not receivewal_lsn_parse: scripts pass what psql prints, with blanks around it. */
                if (sscanf(optarg, "%X/%X", &high, &low) != 2)
                    die("could not parse end position \"%s\"", optarg);
                set.end_lsn = (receivewal_lsn) high << 32 | low;
                break;
            case 'h': set.host = optarg; break;
            case 'n': set.no_loop = true; break;
            case 'p': set.port = optarg; break;
            case 's': set.status_interval = number_option(optarg, "-s/--status-interval", 0, INT_MAX / 1000); break;
            case 'S': set.slot = optarg; break;
            case 'U': set.user = optarg; break;
            case 'v': set.verbose = true; break;
            case 'w': set.password = -1; break;
            case 'W': set.password = 1; break;
            case 'Z': set.compress = optarg; break;
            case OPT_CREATE_SLOT: set.create_slot = true; break;
            case OPT_DROP_SLOT: set.drop_slot = true; break;
            case OPT_IF_NOT_EXISTS: set.if_not_exists = true; break;
            case OPT_SYNCHRONOUS: set.synchronous = true; break;
            case OPT_NO_SYNC: set.no_sync = true; break;
            default: die_with_hint(NULL); /* getopt_long has said what is wrong */
        }
    if (set.restore)
    {
        if (argc - optind < 2)
            die_with_hint("--restore needs the name of a file and the path to write it to");
        set.restore_name = argv[optind++];
        set.restore_target = argv[optind++];
    }
    if (optind < argc)
        die_with_hint("too many command-line arguments (first is \"%s\")", argv[optind]);
}

/* The server would refuse the name too, but its answer depends on the command that has it. */
static void check_slot_name(const char *name)
{
    size_t length = strlen(name);

    if (length >= 1 && length <= 63 && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == length)
        return;
    say("error: ", "replication slot name \"%s\" is not valid", name);
    say("hint: ", "Replication slot names have 1 to 63 lower case letters, numbers and underscores.");
    exit(1);
}

static void warn_of_file(const char *file, const char *problem)
{
    say("warning: ", "could not write file \"%s\": %s", file, problem);
}

/* Begins to write --status-file and --metrics-file. */
static void start_health(void)
{
    const health_files files = { set.status_file, set.metrics_file, set.directory, set.slot, warn_of_file };
    int problem = health_start(&files);

    if (problem != 0)
        die("could not create thread: %s", strerror(problem));
}

/* Checks what the options mean together, in pg_receivewal's order. */
static void check_options(void)
{
    if (set.drop_slot && set.create_slot)
        die_with_hint("cannot use --create-slot together with --drop-slot");
    if (set.slot == NULL && (set.drop_slot || set.create_slot))
        die_with_hint("%s needs a slot to be specified using --slot", set.drop_slot ? "--drop-slot" : "--create-slot");
    if (set.synchronous && set.no_sync)
        die_with_hint("cannot use --synchronous together with --no-sync");
    if (set.directory == NULL && !set.drop_slot && !set.create_slot)
        die_with_hint("no target directory specified");
    if (set.check && (set.create_slot || set.drop_slot))
        die_with_hint("cannot use --check together with %s", set.create_slot ? "--create-slot" : "--drop-slot");
    if (set.restore && (set.create_slot || set.drop_slot || set.check))
        die_with_hint("cannot use --restore together with %s",
                      set.check ? "--check" : set.create_slot ? "--create-slot" : "--drop-slot");
    if (set.json && !set.check)
        die_with_hint("--json needs --check");
    if (set.wal_segsize != 0 && !set.check)
        die_with_hint("--wal-segsize needs --check");
    if (set.mirror_required && set.mirror_count == 0)
        die_with_hint("--mirror-required needs --mirror");
    if (set.reserve_wal && !set.create_slot)
        die_with_hint("--reserve-wal needs --create-slot");
    if (set.slot_wait != 0 && set.slot == NULL)
        die_with_hint("--slot-wait needs a slot to be specified using --slot");
    if (set.compress != NULL)
        read_compression(set.compress);
    if (!set.drop_slot && !set.create_slot)
    {
        DIR *directory = opendir(set.directory);

        if (directory == NULL)
            die("could not open directory \"%s\": %s", set.directory, strerror(errno));
        closedir(directory);
    }
    if (set.slot != NULL)
        check_slot_name(set.slot);
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    PGconn *conn;
    int code;

    progname = slash != NULL ? slash + 1 : argv[0];
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-?") == 0))
    {
        usage();
        return 0;
    }
    if (argc > 1 && (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0))
    {
        version();
        return 0;
    }
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--restore") == 0) /* whatever is wrong with the command line, it is not the end of the WAL */
            failure_code = RESTORE_FAILED;
    read_options(argc, argv);
    check_options();

    if (set.check)
        return check_directory();
    if (set.restore)
        return restore();
    /* Signals keep their default until here, so that they end a password prompt. */
    if (!set.create_slot && !set.drop_slot)
        start_health();
    conn = connect_to_server();
    if (conn == NULL)
        return 1;
    catch_signals();
    if (set.create_slot || set.drop_slot)
        return change_slot(conn);
    code = receive_until_done(conn);
    health_result(code);
    return code;
}
