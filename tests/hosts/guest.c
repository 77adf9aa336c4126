/* A host that has closed its standard descriptors, cleared its environment and left its directory: as daemons do. */
#include <sys/stat.h>

#include "server.h"

extern char **environ;

static int standard_descriptors_in_use(void)
{
    int count = 0;

    for (int fd = 0; fd < 3; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static server first, second;
static int replacement;

/* The first connection is lost in the middle. */
static int cut_off(void *ctx, const receivewal_segment *segment)
{
    (void)ctx;
    if (segment->lsn == SERVER_START)
        shutdown(first.fd, SHUT_RDWR);
    return 0;
}

static int connect_anew(void *ctx, const receivewal_reconnection *reconnection, receivewal_connection *connection)
{
    (void)ctx;
    (void)reconnection;
    connection->fd = replacement;
    return 0;
}

/* Those that survive exec, from 3 on. */
static int inheritable(void)
{
    int count = 0;

    for (int fd = 3; fd < 1000; fd++)
        count += fcntl(fd, F_GETFD) == 0;
    return count;
}

int main(void)
{
    const int inherited = inheritable();
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    receivewal_status received, found;
    struct stat info;
    char text[200] = "", here[1000];
    mode_t mask;
    receivewal *rw;
    int in_use[2], output = fcntl(1, F_DUPFD_CLOEXEC, 100);
    int fd = server_start(&first, SERVER_START + SERVER_SEGMENT + 1, 0), leaky;

    replacement = server_start(&second, SERVER_START + 4 * SERVER_SEGMENT, 0);
    REQUIRE(output >= 100 && fd > 2 && replacement > 2);
    umask(0777);
    close(0);
    close(1);
    close(2);
    for (char **variable = environ; variable != NULL && *variable != NULL; variable++)
        memset(*variable, 0, strlen(*variable));
    environ = NULL;

    rw = attach(fd);
    in_use[0] = standard_descriptors_in_use();
    o.directory = new_directory();
    chmod(o.directory, 0700);
    o.start_lsn = SERVER_START;
    o.end_lsn = SERVER_START + 3 * SERVER_SEGMENT;
    o.file_mode = 0640;
    o.events.segment_completed = cut_off;
    o.events.reconnect = connect_anew;
    received = receivewal_start(rw, &o);
    REQUIRE(getcwd(here, sizeof(here)) != NULL);
    strcat(strcat(here, "/"), o.directory);
    REQUIRE(chdir("/") == 0);
    if (received == RECEIVEWAL_OK)
        received = receivewal_wait(rw, -1);
    snprintf(text, sizeof(text), "%s", receivewal_errmsg(rw));
    found = receivewal_find_start(here, 0, &start);
    in_use[1] = standard_descriptors_in_use();
    leaky = inheritable() - inherited;
    mask = umask(022);

    dup2(output, 1);
    CHECK("nothing of ours takes the place of a standard descriptor", in_use[0] == 0 && in_use[1] == 0, "%d and %d do", in_use[0], in_use[1]);
    CHECK("every descriptor is close-on-exec", leaky == 0, "%d are not", leaky);
    CHECK("a receive", received == RECEIVEWAL_OK, "%d: %s", (int)received, text);
    CHECK("find_start", found == RECEIVEWAL_OK && start.lsn == SERVER_START + 3 * SERVER_SEGMENT && start.timeline == 1 &&
          start.segment_size == SERVER_SEGMENT && strncmp(start.segment, "00000001", 8) == 0,
          "%d: %s, lsn %llx, segment %s", (int)found, receivewal_errmsg(NULL), (unsigned long long)start.lsn, start.segment);
    CHECK("the umask is as it was", mask == 0777, "%o", (unsigned)mask);
    strcat(here, "/000000010000000000000001");
    CHECK("the umask does not apply", stat(here, &info) == 0 && (info.st_mode & 07777) == 0640, "%o", (unsigned)info.st_mode);
    CHECK_STATUS("detach", receivewal_detach(rw), RECEIVEWAL_OK);
    return 0;
}
