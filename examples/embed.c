/*
 * embed.c: the smallest host. Receives three WAL segments on a connection of libpq, then goes on using the connection.
 *
 *     cc embed.c -lpq -lreceivewal -o embed && ./embed "host=/tmp user=backup sslmode=disable" /backup/wal
 *
 * BSD-3-Clause. See LICENSE.
 */
#include <receivewal.h>

#include <libpq-fe.h>
#include <stdio.h>

static int on_segment(void *ctx, const receivewal_segment *segment)
{
    int *wanted = ctx;

    printf("%s is complete and safe on disk\n", segment->name);
    return --*wanted == 0; /* non-zero: stop */
}

int main(int argc, char **argv)
{
    const char *keywords[] = { "dbname", "replication", NULL };
    const char *values[] = { argc > 1 ? argv[1] : "", "true", NULL };
    PGconn *conn = PQconnectdbParams(keywords, values, 1);
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal_status status;
    receivewal *rw;
    PGresult *result;
    int wanted = 3;

    if (PQstatus(conn) != CONNECTION_OK)
        return fprintf(stderr, "%s", PQerrorMessage(conn)), 1;

    connection.fd = PQsocket(conn);
    connection.server_version = PQserverVersion(conn);
    if (receivewal_attach(&connection, &rw) != RECEIVEWAL_OK)
        return fprintf(stderr, "%s\n", receivewal_errmsg(NULL)), 1;

    options.directory = argc > 2 ? argv[2] : ".";
    options.events.ctx = &wanted;
    options.events.segment_completed = on_segment;
    status = receivewal_receive(rw, &options);
    if (status != RECEIVEWAL_ERR_STOPPED)
        return fprintf(stderr, "%s\n", receivewal_errmsg(rw)), 1;
    receivewal_detach(rw);

    result = PQexec(conn, "IDENTIFY_SYSTEM"); /* the same connection, idle again */
    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        return fprintf(stderr, "%s", PQerrorMessage(conn)), 1;
    printf("the server is at %s\n", PQgetvalue(result, 0, 2));
    PQclear(result);
    PQfinish(conn);
    return 0;
}
