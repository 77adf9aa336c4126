/*
 * A host that comes and goes: attaches, receives and detaches again and again on one connection. Nothing adds up, and nothing
 * is left.
 *
 *     rounds CONNINFO FOLDER CORE ROUNDS     CORE is the path of the core library
 */
#include <dlfcn.h>
#include <sys/file.h>

#include "postgres.h"

enum { FIFTHS = 5 }; /* a leak makes almost each fifth of the rounds need more; a thread more, once, is none */

static long rss(void)
{
    return proc_kb("/proc/self/smaps_rollup", "Rss");
}

static int stop_at_once(void *ctx, const receivewal_segment *segment)
{
    (void)ctx;
    (void)segment;
    return 1;
}

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    (void)level;
    *(size_t *)ctx += strlen(text);
}

static int on_progress(void *ctx, const receivewal_progress *progress)
{
    *(size_t *)ctx += strlen(progress->segment);
    return 0;
}

/* Who still has the directory locked, or open? */
static bool unlocked(const char *directory)
{
    const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool free = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;

    close(fd);
    return free;
}

int main(int argc, char **argv)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_check check = RECEIVEWAL_CHECK_INIT;
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    char directory[PATH_MAX];
    int before_fds, before_threads, failed = 0, rounds;
    int64_t (*alive)(void), began;
    long memory[FIFTHS + 1], least = LONG_MAX, growth = LONG_MAX;
    receivewal *rw;
    size_t told = 0;
    PGconn *conn;
    void *core;

    REQUIRE(argc == 5 && atoi(argv[4]) % FIFTHS == 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    rounds = atoi(argv[4]);
    conn = pg_connect(argv[1], "rounds");
    o.directory = numbered(argv[2], 0, directory);

    /* A first receive, of something. */
    rw = pg_attach(conn);
    REQUIRE(receivewal_identify(rw, &system) == RECEIVEWAL_OK);
    o.events.ctx = &told;
    o.events.log = on_log;
    o.events.progress = on_progress;
    o.start_lsn = system.lsn - (2 << 20);
    o.end_lsn = system.lsn - 1;
    CHECK_STATUS("a receive to the end", receivewal_receive(rw, &o), RECEIVEWAL_OK);
    CHECK("its directory is unlocked", unlocked(directory), "it is not");
    CHECK_STATUS("detach", receivewal_detach(rw), RECEIVEWAL_OK);
    core = dlopen(argv[3], RTLD_NOW | RTLD_NOLOAD);
    REQUIRE(core != NULL);
    *(void **)&alive = dlsym(core, "receivewal_core_alive");
    REQUIRE(alive != NULL);
    CHECK("nothing is alive after the first detach", alive() == 0, "%d", (int)alive());
    before_fds = descriptors();
    before_threads = threads();

    began = milliseconds();
    for (int i = 0; i < rounds; i++)
    {
        if (i % (rounds / FIFTHS) == 0)
            memory[i / (rounds / FIFTHS)] = rss();
        rw = pg_attach(conn);
        o.events.segment_opened = i % 3 == 2 ? stop_at_once : NULL;
        o.end_lsn = i % 3 == 2 ? 0 : 1;
        failed += receivewal_receive(rw, &o) != (i % 3 == 2 ? RECEIVEWAL_ERR_STOPPED : RECEIVEWAL_OK);
        failed += receivewal_connection_usable(rw) != 1;
        failed += receivewal_detach(rw) != RECEIVEWAL_OK;
        if (i % 100 == 99)
        {
            failed += !pg_usable(conn);
            failed += receivewal_check_directory(directory, NULL, &check) != RECEIVEWAL_OK || check.problems != 0;
            failed += receivewal_find_start(directory, 0, &start) != RECEIVEWAL_OK || start.lsn == 0;
        }
    }
    memory[FIFTHS] = rss();
    printf("# %d rounds, %d us each; KiB of memory, each fifth of them: %ld", rounds, (int)((milliseconds() - began) * 1000 / rounds), memory[0]);
    for (int i = 1; i <= FIFTHS; i++)
    {
        printf(" %ld", memory[i]);
        if (memory[i] - memory[i - 1] < least)
        {
            growth = least;
            least = memory[i] - memory[i - 1];
        }
        else if (memory[i] - memory[i - 1] < growth)
            growth = memory[i] - memory[i - 1];
    }
    printf("\n");
    CHECK("every round", failed == 0, "%d failed", failed);
    CHECK("events came", told > 0, "none");
    CHECK("memory is flat", growth < 512, "%ld KiB or more in each fifth of the rounds but one", growth);
    CHECK("no session and no goroutine is left", alive() == 0, "%d", (int)alive());
    CHECK("no descriptor is left", descriptors() == before_fds, "%d before, %d after", before_fds, descriptors());
    CHECK("no thread is left", threads() <= before_threads + 16, "%d before, %d after", before_threads, threads());
    CHECK("no lock is left", unlocked(directory), "there is one");
    CHECK("the connection is the host's", pg_usable(conn), "%s", PQerrorMessage(conn));
    PQfinish(conn);
    return 0;
}
