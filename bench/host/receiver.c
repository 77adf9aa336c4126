/*
 * receiver.c: the smallest host that receives WAL through the C API, as the bench runs it beside pg_receivewal.
 *
 *     receiver [-s] [-S SLOT] [-E END_LSN] [-Z METHOD[:LEVEL]] [-W WORKERS] -d CONNINFO -D DIRECTORY
 *
 * It ends at END_LSN, or cleanly on SIGINT and SIGTERM. -s is synchronous mode; -Z gzip, lz4 or zstd.
 *
 * BSD-3-Clause. See LICENSE.
 */
#include <libpq-fe.h>
#include <receivewal.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static receivewal *volatile stopped; /* for the signal handler: receivewal_stop is allowed there */

static void on_signal(int number)
{
    (void)number;
    receivewal_stop(stopped);
}

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    (void)ctx;
    if (level >= RECEIVEWAL_LOG_WARNING)
        fprintf(stderr, "receiver: %s\n", text);
}

/* Reads METHOD[:LEVEL]. */
static int compress_with(const char *text, receivewal_options *options)
{
    static const struct
    {
        const char *name;
        receivewal_compression method;
    } methods[] = { { "gzip", RECEIVEWAL_COMPRESSION_GZIP }, { "lz4", RECEIVEWAL_COMPRESSION_LZ4 }, { "zstd", RECEIVEWAL_COMPRESSION_ZSTD } };
    const size_t length = strcspn(text, ":");

    options->compression_level = text[length] == ':' ? atoi(text + length + 1) : 0;
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
    {
        if (strlen(methods[i].name) == length && strncmp(methods[i].name, text, length) == 0)
        {
            options->compression = methods[i].method;
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    const char *keywords[] = { "dbname", "replication", "fallback_application_name", NULL };
    const char *values[] = { NULL, "true", "receiver", NULL };
    struct sigaction action = { 0 };
    receivewal_status status;
    receivewal *rw;
    PGconn *conn;
    int option;

    while ((option = getopt(argc, argv, "sd:D:S:E:Z:W:")) != -1)
    {
        if (option == 's')
            options.synchronous = 1;
        else if (option == 'd')
            values[0] = optarg;
        else if (option == 'D')
            options.directory = optarg;
        else if (option == 'S')
            options.slot = optarg;
        else if (option == 'W')
            options.compression_workers = atoi(optarg);
        else if (option == 'Z')
        {
            if (!compress_with(optarg, &options))
                return 2;
        }
        else if (option != 'E' || receivewal_lsn_parse(optarg, &options.end_lsn) != RECEIVEWAL_OK)
            return 2;
    }
    conn = PQconnectdbParams(keywords, values, 1);
    if (PQstatus(conn) != CONNECTION_OK)
    {
        fprintf(stderr, "receiver: %s", PQerrorMessage(conn));
        return 1;
    }
    connection.fd = PQsocket(conn);
    connection.server_version = PQserverVersion(conn);
    if (receivewal_attach(&connection, &rw) != RECEIVEWAL_OK)
    {
        fprintf(stderr, "receiver: %s\n", receivewal_errmsg(NULL));
        return 1;
    }
    stopped = rw;
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    options.events.log = on_log;
    status = receivewal_receive(rw, &options);
    if (status != RECEIVEWAL_OK && status != RECEIVEWAL_ERR_STOPPED)
    {
        fprintf(stderr, "receiver: %s\n", receivewal_errmsg(rw));
        return 1;
    }
    receivewal_detach(rw);
    PQfinish(conn);
    return 0;
}
