/* postgres.h: what hosts do that receive from a real server. libpq connects and authenticates; the socket is lent. */
#ifndef POSTGRES_H
#define POSTGRES_H

#include <libpq-fe.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/stat.h>

#include "check.h"

/* A connection for replication, whose name pg_stat_replication shows. */
static inline PGconn *pg_connect(const char *conninfo, const char *name)
{
    const char *keywords[] = { "dbname", "replication", "application_name", NULL };
    const char *values[] = { conninfo, "true", name, NULL };
    PGconn *conn = PQconnectdbParams(keywords, values, 1);

    if (PQstatus(conn) != CONNECTION_OK)
    {
        printf("FAIL connect: %s", PQerrorMessage(conn));
        fflush(stdout);
        _exit(1);
    }
    return conn;
}

static inline receivewal *pg_attach(PGconn *conn)
{
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal *rw;

    connection.fd = PQsocket(conn);
    connection.server_version = PQserverVersion(conn);
    if (receivewal_attach(&connection, &rw) != RECEIVEWAL_OK)
    {
        printf("FAIL attach: %s\n", receivewal_errmsg(NULL));
        fflush(stdout);
        _exit(1);
    }
    return rw;
}

/* Whether the connection is the host's again: its next command is answered. */
static inline bool pg_usable(PGconn *conn)
{
    PGresult *result = PQexec(conn, "IDENTIFY_SYSTEM");
    const bool good = PQresultStatus(result) == PGRES_TUPLES_OK;

    PQclear(result);
    return good;
}

static inline receivewal_lsn pg_lsn(const char *text)
{
    receivewal_lsn lsn;

    REQUIRE(receivewal_lsn_parse(text, &lsn) == RECEIVEWAL_OK);
    return lsn;
}

/* The numbered directory below a folder. It is made if it isn't there; path has room for PATH_MAX. */
static inline const char *numbered(const char *folder, int number, char *path)
{
    REQUIRE(snprintf(path, PATH_MAX, "%s/%d", folder, number) < PATH_MAX);
    REQUIRE(mkdir(path, 0700) == 0 || entries(path) >= -3);
    return path;
}

/* A number in kB out of a file of /proc, by the name that its line begins with. */
static inline long proc_kb(const char *file, const char *name)
{
    char line[300];
    long kb = -1;
    FILE *f = fopen(file, "r");

    REQUIRE(f != NULL);
    while (kb < 0 && fgets(line, sizeof(line), f) != NULL)
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
            kb = strtol(line + strlen(name) + 1, NULL, 10);
    fclose(f);
    return kb;
}

#endif /* POSTGRES_H */
