/*
 * A host that has become a daemon: its standard descriptors are closed, its environment and arguments overwritten by a process
 * title, and it changes its directory while it receives into a relative one.
 *
 *     daemon CONNINFO FOLDER SEGMENTS
 */
#include <sys/prctl.h>
#include <sys/resource.h>

#include "postgres.h"

extern char **environ;

static int output, wanted, completed, in_the_way;

/* Which of the standard descriptors are open, but for the connection's. */
static int standard(int connection)
{
    int count = 0;

    for (int fd = 0; fd < 3; fd++)
        count += fd != connection && fcntl(fd, F_GETFD) >= 0;
    return count;
}

static int on_completed(void *ctx, const receivewal_segment *segment)
{
    (void)segment;
    in_the_way += standard(*(int *)ctx);
    return ++completed >= wanted;
}

int main(int argc, char **argv)
{
    char conninfo[1000], folder[PATH_MAX], where[PATH_MAX], path[PATH_MAX + 100], title[16];
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_check check = RECEIVEWAL_CHECK_INIT;
    struct rlimit before, after;
    receivewal_status status, checked;
    receivewal *rw;
    PGconn *conn;
    char message[500];
    int fd;

    REQUIRE(argc == 4);
    snprintf(conninfo, sizeof(conninfo), "%s", argv[1]);
    snprintf(folder, sizeof(folder), "%s", argv[2]);
    wanted = atoi(argv[3]);
    output = fcntl(1, F_DUPFD_CLOEXEC, 100);
    REQUIRE(output >= 100 && chdir(folder) == 0 && mkdir("0", 0700) == 0);

    for (int i = 0; i < 3; i++)
        close(i);
    conn = pg_connect(conninfo, "daemon"); /* on descriptor 0 now */
    /* As a process title is set: all of arguments and environment is one buffer. */
    for (char **variable = environ; variable != NULL && *variable != NULL; variable++)
        memset(*variable, 0, strlen(*variable));
    for (int i = 0; i < argc; i++)
        memset(argv[i], 0, strlen(argv[i]));
    strcpy(argv[0], "d: x");
    for (int i = 1; i <= argc; i++)
        argv[i] = NULL;
    environ = NULL;
    prctl(PR_SET_NAME, "d: title");
    getrlimit(RLIMIT_NOFILE, &before);
    before.rlim_cur = 512;
    setrlimit(RLIMIT_NOFILE, &before);
    getrlimit(RLIMIT_NOFILE, &before);

    fd = PQsocket(conn);
    rw = pg_attach(conn);
    o.directory = "0";
    o.events.ctx = &fd;
    o.events.segment_completed = on_completed;
    status = receivewal_start(rw, &o);
    if (status == RECEIVEWAL_OK && chdir("/") == 0)
        status = receivewal_wait(rw, -1);
    snprintf(message, sizeof(message), "%s", receivewal_errmsg(rw));
    snprintf(path, sizeof(path), "%s/0", folder);
    checked = receivewal_check_directory(path, NULL, &check);
    in_the_way += standard(fd);
    getrlimit(RLIMIT_NOFILE, &after);
    prctl(PR_GET_NAME, title);
    receivewal_detach(rw);
    in_the_way += standard(fd);

    dup2(output, 1);
    CHECK("the connection is descriptor 0", fd == 0, "%d", fd);
    CHECK("a receive into a relative directory that was left", status == RECEIVEWAL_ERR_STOPPED && completed >= wanted, "%d %s", (int)status, message);
    CHECK("all is there", checked == RECEIVEWAL_OK && check.problems == 0 && (int)check.segments >= wanted, "%d: %d segments, %d problems",
          (int)checked, (int)check.segments, (int)check.problems);
    CHECK("no descriptor of ours is a standard one", in_the_way == 0, "%d were", in_the_way);
    CHECK("the working directory is the host's", getcwd(where, sizeof(where)) != NULL && strcmp(where, "/") == 0, "%s", where);
    CHECK("the name of the process is the host's", strcmp(title, "d: title") == 0, "%s", title);
    CHECK("so is the limit of descriptors", before.rlim_cur == after.rlim_cur, "%d then, %d now", (int)before.rlim_cur, (int)after.rlim_cur);
    CHECK("and the connection", pg_usable(conn), "%s", PQerrorMessage(conn));
    PQfinish(conn);
    return 0;
}
