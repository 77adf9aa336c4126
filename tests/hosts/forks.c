/*
 * A host like pgmoneta: one process, which never calls the library, forks a child per stream without exec. Each child forks plain C
 * grandchildren while it receives. SIGCHLD handlers take the status of whoever ends (waitpid(-1)).
 *
 *     forks CONNINFO FOLDER END     child i receives up to END with slot "s<i>" into FOLDER/<i>
 *
 * One child is killed while a grandchild of its own lives on. That must hold nothing of the child's: neither the lock on
 * the directory, nor the connection, and with it the slot, at the server.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "postgres.h"

enum { CHILDREN = 8, VICTIM = 3, EVERY_MS = 1000 };

/* What all processes of this test see. */
typedef struct shared
{
    struct
    {
        _Atomic pid_t pid;       /* 0: has ended */
        _Atomic int status;      /* as waitpid gave it */
        _Atomic int completed;   /* segments */
        _Atomic int forked, done, fine; /* grandchildren */
        _Atomic int locked, slot_busy;
        _Atomic bool receiving, orphan_lived;
        char problem[300];
    } child[CHILDREN];
    _Atomic pid_t orphan; /* a grandchild of VICTIM that waits for release */
    _Atomic bool release;
} shared;

static shared *all;
static const char *conninfo, *folder;
static receivewal_lsn end_lsn;

/* ------------------------------------------------------------------------------------------- the grandchild */

/* What is open in this process that a child of a receiver should not have; "" if nothing. */
static void look_for_copies(const char *directory, const char *connection, char *found, size_t size)
{
    DIR *d = opendir("/proc/self/fd");
    struct dirent *entry;
    int events = 0;

    found[0] = '\0';
    REQUIRE(d != NULL);
    while ((entry = readdir(d)) != NULL)
    {
        char name[300], target[PATH_MAX] = "";

        snprintf(name, sizeof(name), "/proc/self/fd/%s", entry->d_name);
        if (entry->d_name[0] == '.' || readlink(name, target, sizeof(target) - 1) < 0)
            continue;
        events += strncmp(target, "anon_inode:", 11) == 0;
        if (strncmp(target, directory, strlen(directory)) == 0 || strcmp(target, connection) == 0)
            snprintf(found, size, "descriptor %s: %s", entry->d_name, target);
    }
    closedir(d);
    /* The Go runtime's own two, which hold nothing of ours. */
    if (events > 2)
        snprintf(found, size, "%d event descriptors", events);
}

/* Something like gzip: reads the segment, writes a file elsewhere. */
static bool compress(const char *directory, const char *segment)
{
    char from[PATH_MAX], to[PATH_MAX];
    FILE *in, *out;
    int c, last = -1, run = 0;

    snprintf(from, sizeof(from), "%s/%s", directory, segment);
    snprintf(to, sizeof(to), "%s.packed", directory);
    in = fopen(from, "rb");
    out = fopen(to, "wb");
    if (in == NULL || out == NULL)
        return false;
    while ((c = getc(in)) != EOF)
    {
        if (c == last && run < 255)
        {
            run++;
            continue;
        }
        if (run > 0)
            fprintf(out, "%c%c", run, last);
        last = c;
        run = 1;
    }
    fclose(in);
    return fclose(out) == 0;
}

static void grandchild(int i, PGconn *conn, const char *directory, const char *segment)
{
    char name[64], connection[100] = "";
    int fd = PQsocket(conn);

    /* The host's own copy of the connection is the host's own business. */
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    REQUIRE(readlink(name, connection, sizeof(connection) - 1) > 0);
    close(fd);
    look_for_copies(directory, connection, all->child[i].problem, sizeof(all->child[i].problem));
    all->child[i].fine += compress(directory, segment) && all->child[i].problem[0] == '\0';
    all->child[i].done++;
    if (i == VICTIM && all->child[i].completed >= 3)
    {
        all->orphan = getpid();
        for (int ms = 0; !all->release && ms < 60000; ms += 10)
            sleep_ms(10);
    }
    _exit(0);
}

/* ------------------------------------------------------------------------------------------------ the child */

typedef struct stream
{
    int number;
    PGconn *conn;
    char directory[PATH_MAX];
    char segment[RECEIVEWAL_NAME_MAX];
    int64_t next_fork;
} stream;

static int due(stream *s)
{
    pid_t pid;

    if (s->segment[0] == '\0' || milliseconds() < s->next_fork)
        return 0;
    s->next_fork = milliseconds() + EVERY_MS;
    pid = fork();
    if (pid == 0)
        grandchild(s->number, s->conn, s->directory, s->segment);
    all->child[s->number].forked += pid > 0;
    return 0;
}

static int on_completed(void *ctx, const receivewal_segment *segment)
{
    stream *s = ctx;

    snprintf(s->segment, sizeof(s->segment), "%s", segment->name);
    all->child[s->number].completed++;
    return due(s);
}

static int on_progress(void *ctx, const receivewal_progress *progress)
{
    stream *s = ctx;

    if (progress->state == RECEIVEWAL_STATE_STREAMING && !all->child[s->number].receiving)
    {
        all->child[s->number].receiving = true;
        all->child[s->number].orphan_lived = all->orphan != 0 && kill(all->orphan, 0) == 0;
        all->release = all->child[s->number].orphan_lived;
    }
    return due(s);
}

static void child(int i)
{
    stream s = { .number = i, .next_fork = milliseconds() + EVERY_MS };
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_status status;
    char name[20];
    receivewal *rw;

    snprintf(name, sizeof(name), "child%d", i);
    s.conn = pg_connect(conninfo, name);
    rw = pg_attach(s.conn);
    o.directory = numbered(folder, i, s.directory);
    snprintf(name, sizeof(name), "s%d", i);
    o.slot = name;
    o.end_lsn = end_lsn;
    o.progress_interval = 50;
    o.events.ctx = &s;
    o.events.segment_completed = on_completed;
    o.events.progress = on_progress;
    for (int64_t until = milliseconds() + 20000;;)
    {
        status = receivewal_receive(rw, &o);
        all->child[i].locked += status == RECEIVEWAL_ERR_LOCKED;
        /* The server may not yet have noticed the end of the one that was killed. */
        all->child[i].slot_busy += status == RECEIVEWAL_ERR_SLOT_BUSY;
        if ((status != RECEIVEWAL_ERR_SLOT_BUSY && status != RECEIVEWAL_ERR_LOCKED) || milliseconds() > until)
            break;
        sleep_ms(50);
    }
    if (status != RECEIVEWAL_OK)
        printf("# child %d: %d %s\n", i, (int)status, receivewal_errmsg(rw));
    if (receivewal_detach(rw) != RECEIVEWAL_OK || !pg_usable(s.conn))
        _exit(2);
    PQfinish(s.conn);
    _exit(status == RECEIVEWAL_OK ? 0 : 1);
}

/* ----------------------------------------------------------------------------------------------- the parent */

static void on_child(int signal)
{
    const int saved = errno;
    int status;
    pid_t pid;

    (void)signal;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < CHILDREN; i++)
            if (all->child[i].pid == pid)
            {
                all->child[i].status = status;
                all->child[i].pid = 0;
            }
    errno = saved;
}

static void start(int i)
{
    sigset_t chld, before;
    pid_t pid;

    /* Not before its pid is known. */
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, &before);
    all->child[i].status = -1;
    all->child[i].receiving = false;
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
    {
        sigprocmask(SIG_SETMASK, &before, NULL);
        child(i);
    }
    all->child[i].pid = pid;
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static bool in_time(bool (*done)(void))
{
    for (int ms = 0; ms < 300000; ms += 10)
    {
        if (done())
            return true;
        sleep_ms(10);
    }
    return false;
}

static bool victim_is_ripe(void)
{
    return all->orphan != 0 && all->child[VICTIM].completed >= 3;
}

static bool victim_is_dead(void)
{
    return all->child[VICTIM].pid == 0;
}

static bool all_have_ended(void)
{
    int running = 0;

    for (int i = 0; i < CHILDREN; i++)
        running += all->child[i].pid != 0;
    return running == 0;
}

static bool all_grandchildren_are_done(void)
{
    int missing = 0;

    for (int i = 0; i < CHILDREN; i++)
        missing += all->child[i].done < all->child[i].forked;
    return missing == 0;
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = on_child, .sa_flags = SA_RESTART };
    int failed = 0, without = 0, faulty = 0, held = 0, forked = 0;

    REQUIRE(argc == 4);
    conninfo = argv[1];
    folder = argv[2];
    end_lsn = pg_lsn(argv[3]);
    setvbuf(stdout, NULL, _IONBF, 0);
    all = mmap(NULL, sizeof(*all), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(all != MAP_FAILED && sigaction(SIGCHLD, &action, NULL) == 0);

    for (int i = 0; i < CHILDREN; i++)
        start(i);
    CHECK("the parent has one thread while its children receive", threads() == 1, "%d", threads());
    CHECK("a child has completed segments and a grandchild lives", in_time(victim_is_ripe), "%d segments",
          all->child[VICTIM].completed);
    REQUIRE(all->child[VICTIM].pid > 0 && kill(all->child[VICTIM].pid, SIGKILL) == 0);
    CHECK("one child is killed", in_time(victim_is_dead), "it is still there");
    start(VICTIM);
    CHECK("all children end", in_time(all_have_ended), "they don't");
    CHECK("and so do the grandchildren", in_time(all_grandchildren_are_done), "they don't");
    for (int i = 0; i < CHILDREN; i++)
    {
        const int status = all->child[i].status;

        if (all->child[i].pid != 0)
            kill(all->child[i].pid, SIGKILL);
        if (status != 0)
            printf("# child %d: status %x\n", i, (unsigned)status);
        failed += status != 0;
        without += all->child[i].forked == 0;
        faulty += all->child[i].forked > 0 && all->child[i].fine == 0;
        held += all->child[i].problem[0] != '\0';
        forked += all->child[i].forked;
        if (all->child[i].problem[0] != '\0')
            printf("# a grandchild of child %d had %s\n", i, all->child[i].problem);
    }
    CHECK("each with success", failed == 0, "%d failed", failed);
    CHECK("each forked plain children meanwhile", without == 0, "%d did not", without);
    CHECK("which worked", faulty == 0, "those of %d children did not", faulty);
    /* A fork can come in the very instant between the opening of a file and its entry in the table. */
    CHECK("and held nothing of the library's", held <= 1, "those of %d children", held);
    CHECK("the replacement receives while the orphan lives", all->child[VICTIM].orphan_lived, "it did not");
    CHECK("the orphan did not hold the directory's lock", all->child[VICTIM].locked == 0, "%d times", all->child[VICTIM].locked);
    CHECK("the parent still has one thread", threads() == 1, "%d", threads());
    printf("# %d grandchildren; the slot was busy %d times\n", forked, all->child[VICTIM].slot_busy);
    all->release = true;
    return 0;
}
