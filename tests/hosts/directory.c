/* What can be wrong with a directory: each has its own code, and a sentence that names it. */
#include <errno.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "server.h"

static char path[1100];

static const char *below(const char *directory, const char *name)
{
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

int main(void)
{
    server server;
    int fd = server_start(&server, SERVER_START + 3 * SERVER_SEGMENT, 0), lock, file;
    receivewal *rw = attach(fd);
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    char directory[100], here[1000];

    snprintf(directory, sizeof(directory), "%s", new_directory());
    REQUIRE(chmod(".", 0755) == 0 && chmod(directory, 0777) == 0);
    o.start_lsn = SERVER_START;

    o.directory = below(directory, "missing");
    CHECK_ERROR("a missing directory", receivewal_receive(rw, &o), RECEIVEWAL_ERR_NO_DIRECTORY, rw, "/missing");
    o.directory = "missing, relative";
    REQUIRE(getcwd(here, sizeof(here)) != NULL);
    strcat(here, "/missing, relative");
    CHECK_ERROR("a relative directory is one in the working directory of now", receivewal_receive(rw, &o), RECEIVEWAL_ERR_NO_DIRECTORY, rw,
                here);
    CHECK("the connection is not touched", receivewal_connection_usable(rw) == 1, "unusable");
    file = open(below(directory, "file"), O_CREAT | O_WRONLY, 0600);
    REQUIRE(file >= 0);
    close(file);
    o.directory = path;
    CHECK_ERROR("a file as the directory", receivewal_receive(rw, &o), RECEIVEWAL_ERR_NO_DIRECTORY, rw, "/file");
    unlink(path);

    lock = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0);
    o.directory = directory;
    CHECK_ERROR("a locked directory", receivewal_receive(rw, &o), RECEIVEWAL_ERR_LOCKED, rw, "wal-");
    CHECK_STATUS("find_start needs no lock", receivewal_find_start(directory, 0, &start), RECEIVEWAL_OK);
    CHECK("and finds nothing in an empty directory", start.lsn == 0 && start.segment[0] == '\0', "%s", start.segment);
    close(lock);

    REQUIRE(chmod(directory, 0555) == 0 && mkdir("closed", 0700) == 0);
    if (geteuid() == 0)
        REQUIRE(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    CHECK_ERROR("a directory that may not be written", receivewal_receive(rw, &o), RECEIVEWAL_ERR_PERMISSION, rw, "wal-");
    CHECK("the connection is idle after that", receivewal_connection_usable(rw) == 1, "unusable");
    if (geteuid() == 65534) /* else the folder is ours */
    {
        o.directory = "closed";
        CHECK_ERROR("a directory that may not be read", receivewal_receive(rw, &o), RECEIVEWAL_ERR_PERMISSION, rw, "closed");
        CHECK_ERROR("nor looked through", receivewal_find_start("closed", 0, &start), RECEIVEWAL_ERR_PERMISSION, NULL, "closed");
    }
    CHECK_STATUS("detach", receivewal_detach(rw), RECEIVEWAL_OK);
    server_stop(&server);
    return 0;
}
