/* After 10,000 rounds nothing is left. The core tells by receivewal_core_alive what is still alive of its own. */
#include <dlfcn.h>
#include <sys/resource.h>

#include "server.h"

int main(int argc, char **argv)
{
    server server;
    int fd = server_start(&server, SERVER_START, 0), before_fds, before_threads;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    struct rusage before, after;
    int64_t (*alive)(void);
    void *core;
    int64_t began;

    REQUIRE(argc == 2);
    for (int i = 0; i < 2000; i++) /* until caches and the Go heap have their size */
        REQUIRE(receivewal_detach(attach(fd)) == RECEIVEWAL_OK);
    core = dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD);
    REQUIRE(core != NULL);
    *(void **)&alive = dlsym(core, "receivewal_core_alive");
    REQUIRE(alive != NULL);
    before_fds = descriptors();
    before_threads = threads();
    getrusage(RUSAGE_SELF, &before);
    began = milliseconds();
    for (int i = 0; i < 10000; i++)
        REQUIRE(receivewal_detach(attach(fd)) == RECEIVEWAL_OK);
    printf("# %d us per attach and detach\n", (int)((milliseconds() - began) * 1000 / 10000));
    for (int i = 0; i < 300; i++)
    {
        receivewal *rw = attach(fd);

        REQUIRE(receivewal_identify(rw, &system) == RECEIVEWAL_OK);
        receivewal_drop_slot(rw, "gone", 0);
        REQUIRE(receivewal_detach(rw) == RECEIVEWAL_OK);
    }
    getrusage(RUSAGE_SELF, &after);
    CHECK("descriptors", descriptors() == before_fds, "%d before, %d after", before_fds, descriptors());
    CHECK("threads", threads() <= before_threads + 16, "%d before, %d after", before_threads, threads());
    CHECK("memory", after.ru_maxrss - before.ru_maxrss < 8 * 1024, "%ld KiB more", after.ru_maxrss - before.ru_maxrss);
    CHECK("sessions and goroutines", alive() == 0, "%d", (int)alive());
    receivewal_identify(attach(fd), &system);
    CHECK("the count counts", alive() == 1, "%d", (int)alive());
    server_stop(&server);
    return 0;
}
