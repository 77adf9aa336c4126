/*
 * archive.c: a host that looks after its archive: holes, a full disk, WAL that does not belong.
 *
 *   archive CONNINFO DIRECTORY receive END REPAIR STATUS FOUND REPAIRED LOST TEXT
 *   archive CONNINFO DIRECTORY check PROBLEMS SEGMENTS
 *   archive CONNINFO DIRECTORY full END
 *   archive CONNINFO DIRECTORY mirrors END PARENT GOOD LATE
 *   archive CONNINFO DIRECTORY compressed END METHOD LEVEL WORKERS SUFFIX
 *   archive CONNINFO DIRECTORY restore NAME TARGET STATUS
 *   archive CONNINFO DIRECTORY invalid
 */
#include <limits.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "postgres.h"

static int states[3];

static int on_problem(void *ctx, const receivewal_problem *problem)
{
    (void)ctx;
    REQUIRE(problem->size == sizeof(*problem) && problem->text[0] != '\0' && problem->file != NULL);
    REQUIRE(problem->kind != RECEIVEWAL_PROBLEM_MISSING || problem->lsn < problem->end_lsn);
    states[problem->state]++;
    return 0;
}

static int only_one(void *ctx, const receivewal_problem *problem)
{
    (void)problem;
    ++*(int *)ctx;
    return 1;
}

static receivewal_status receive(PGconn *conn, const receivewal_options *options, char text[1000])
{
    receivewal *rw = pg_attach(conn);
    receivewal_status status = receivewal_receive(rw, options);

    snprintf(text, 1000, "%s", receivewal_errmsg(rw));
    CHECK_STATUS("detached", receivewal_detach(rw), RECEIVEWAL_OK);
    CHECK("the connection is the host's again", pg_usable(conn), "%s", PQerrorMessage(conn));
    return status;
}

static void with_holes(PGconn *conn, receivewal_options *o, char **argv)
{
    char text[1000];
    receivewal_status status;

    o->end_lsn = pg_lsn(argv[0]);
    o->repair = (receivewal_repair)atoi(argv[1]);
    o->events.problem = on_problem;
    status = receive(conn, o, text);
    CHECK("the status", (int)status == atoi(argv[2]), "%d: %s", (int)status, text);
    CHECK("problems found", states[RECEIVEWAL_PROBLEM_FOUND] == atoi(argv[3]), "%d", states[RECEIVEWAL_PROBLEM_FOUND]);
    CHECK("repaired", states[RECEIVEWAL_PROBLEM_REPAIRED] == atoi(argv[4]), "%d", states[RECEIVEWAL_PROBLEM_REPAIRED]);
    CHECK("lost", states[RECEIVEWAL_PROBLEM_LOST] == atoi(argv[5]), "%d", states[RECEIVEWAL_PROBLEM_LOST]);
    CHECK("the text", strstr(text, argv[6]) != NULL, "%s", text);
}

static void check(const char *directory, char **argv)
{
    receivewal_check_options options = RECEIVEWAL_CHECK_OPTIONS_INIT;
    receivewal_check found = RECEIVEWAL_CHECK_INIT;
    int told = 0;

    CHECK_STATUS("check", receivewal_check_directory(directory, NULL, &found), RECEIVEWAL_OK);
    CHECK("problems", (int)found.problems == atoi(argv[0]), "%d", (int)found.problems);
    CHECK("segments", (int)found.segments == atoi(argv[1]), "%d", (int)found.segments);
    CHECK("whose it is", found.system_identifier != 0 && found.segment_size == 1 << 20 && found.timeline == 1 &&
          found.oldest_lsn != 0 && found.lsn > found.oldest_lsn, "%d %d", (int)found.segment_size, (int)found.timeline);
    options.decode = 1;
    options.problem = on_problem;
    CHECK_STATUS("check, and tell", receivewal_check_directory(directory, &options, &found), RECEIVEWAL_OK);
    CHECK("each is told", states[RECEIVEWAL_PROBLEM_FOUND] == (int)(found.problems + found.leftovers), "%d", states[0]);
    options.ctx = &told;
    options.problem = only_one;
    CHECK_STATUS("check, until it is enough", receivewal_check_directory(directory, &options, &found), RECEIVEWAL_OK);
    CHECK("one is told", told == (found.problems > 0), "%d", told);
    CHECK_ERROR("no result", receivewal_check_directory(directory, NULL, NULL), RECEIVEWAL_ERR_INVALID, NULL, "check is NULL");
    CHECK_ERROR("no directory", receivewal_check_directory(NULL, NULL, &found), RECEIVEWAL_ERR_INVALID, NULL, "directory");
    CHECK_ERROR("none of this name", receivewal_check_directory("/no/such/folder", NULL, &found), RECEIVEWAL_ERR_NO_DIRECTORY, NULL,
                "/no/such/folder");
    options.segment_size = 3;
    CHECK_ERROR("an impossible size", receivewal_check_directory(directory, &options, &found), RECEIVEWAL_ERR_INVALID, NULL, "segment_size");
    options.size = 3;
    CHECK_ERROR("a struct of no version", receivewal_check_directory(directory, &options, &found), RECEIVEWAL_ERR_SIZE, NULL,
                "receivewal_check_options");
}

/* ---- a full disk: no file may be longer than half a segment, until the library has told that it waits */

static receivewal *full_handle;
static bool make_room;
static int full_events, room_events;
static receivewal_state state_when_full;

static void limit(rlim_t bytes)
{
    struct rlimit l;

    REQUIRE(getrlimit(RLIMIT_FSIZE, &l) == 0);
    l.rlim_cur = bytes;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &l) == 0);
}

static int on_disk_full(void *ctx, const receivewal_disk_full *disk)
{
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

    (void)ctx;
    if (!disk->full)
    {
        room_events += disk->waited > 0 && disk->errmsg[0] == '\0';
        return 0;
    }
    full_events += disk->errmsg[0] != '\0';
    REQUIRE(receivewal_get_progress(full_handle, &progress) == RECEIVEWAL_OK);
    state_when_full = progress.state;
    if (make_room)
        limit(RLIM_INFINITY);
    else
        receivewal_stop(full_handle);
    return 0;
}

static void full(PGconn *conn, receivewal_options *o, char **argv)
{
    signal(SIGXFSZ, SIG_IGN);
    o->end_lsn = pg_lsn(argv[0]);
    o->events.disk_full = on_disk_full;
    full_handle = pg_attach(conn);

    limit(1 << 19);
    CHECK_ERROR("a full disk ends the receive", receivewal_receive(full_handle, o), RECEIVEWAL_ERR_DISK_FULL, full_handle, "allocate file");
    CHECK("and is not told as an event", full_events == 0, "%d", full_events);
    o->on_disk_full = RECEIVEWAL_DISK_FULL_WAIT;
    CHECK_STATUS("stopped while waiting", receivewal_receive(full_handle, o), RECEIVEWAL_ERR_STOPPED);
    CHECK("told once", full_events == 1 && room_events == 0, "%d %d", full_events, room_events);
    CHECK("the state while waiting", state_when_full == RECEIVEWAL_STATE_DISK_FULL, "%d", (int)state_when_full);
    make_room = true;
    CHECK_STATUS("goes on once there is room", receivewal_receive(full_handle, o), RECEIVEWAL_OK);
    CHECK("told of both", full_events == 2 && room_events == 1, "%d %d", full_events, room_events);
    CHECK_STATUS("detached", receivewal_detach(full_handle), RECEIVEWAL_OK);
    CHECK("the connection is the host's again", pg_usable(conn), "%s", PQerrorMessage(conn));
}

/* ---- mirrors: one that is there, and one that the host makes once it has heard that it is not */

static receivewal *mirrored_handle;
static char late[PATH_MAX]; /* the absolute path of the second */
static int failed_events, restored_events;
static bool told_well = true, stop_at_restored;

static int on_mirror(void *ctx, const receivewal_mirror *mirror)
{
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

    (void)ctx;
    REQUIRE(receivewal_get_progress(mirrored_handle, &progress) == RECEIVEWAL_OK);
    told_well = told_well && mirror->size == sizeof(*mirror) && strcmp(mirror->directory, late) == 0;
    if (mirror->state == RECEIVEWAL_MIRROR_FAILED)
    {
        failed_events++;
        told_well = told_well && mirror->status == RECEIVEWAL_ERR_NO_DIRECTORY && strstr(mirror->errmsg, late) != NULL &&
                    progress.mirrors_failed >= 1;
        REQUIRE(mkdir(late, 0700) == 0);
        return 0;
    }
    restored_events++;
    told_well = told_well && mirror->state == RECEIVEWAL_MIRROR_RESTORED && mirror->status == RECEIVEWAL_OK && mirror->errmsg[0] == '\0' &&
                progress.mirrors == 2 && progress.mirrors_failed == 0;
    return stop_at_restored;
}

static void mirrors(PGconn *conn, receivewal_options *o, char **argv)
{
    char names[2][100];
    const char *list[2] = { names[0], names[1] };
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal *rw = pg_attach(conn);

    mirrored_handle = rw;
    REQUIRE(chdir(argv[1]) == 0);
    REQUIRE(snprintf(late, sizeof(late), "%s/%s", argv[1], argv[3]) < (int)sizeof(late));
    snprintf(names[0], sizeof(names[0]), "%s", argv[2]);
    snprintf(names[1], sizeof(names[1]), "%s", argv[3]);
    o->mirrors = list;
    o->mirror_count = 2;

    o->mirror_required = 1;
    CHECK_ERROR("a required mirror that is not there", receivewal_receive(rw, o), RECEIVEWAL_ERR_NO_DIRECTORY, rw, late);
    list[1] = o->directory;
    CHECK_ERROR("the first directory again", receivewal_receive(rw, o), RECEIVEWAL_ERR_LOCKED, rw, o->directory);
    list[1] = names[1];

    /* Without: it goes on. The names are copied before the call returns, and mean what they meant then. */
    o->mirror_required = 0;
    o->events.mirror = on_mirror;
    stop_at_restored = true;
    CHECK_STATUS("started", receivewal_start(rw, o), RECEIVEWAL_OK);
    memset(names, 'x', sizeof(names));
    list[0] = list[1] = NULL;
    REQUIRE(chdir("/") == 0);
    CHECK_STATUS("a callback stops", receivewal_wait(rw, 60000), RECEIVEWAL_ERR_STOPPED);
    CHECK("failed and back", failed_events == 1 && restored_events == 1 && told_well, "%d %d %d", failed_events, restored_events, told_well);

    snprintf(names[0], sizeof(names[0]), "%s", argv[2]);
    snprintf(names[1], sizeof(names[1]), "%s", argv[3]);
    list[0] = names[0];
    list[1] = names[1];
    REQUIRE(chdir(argv[1]) == 0);
    o->mirror_required = 1;
    o->end_lsn = pg_lsn(argv[0]);
    CHECK_STATUS("received", receivewal_receive(rw, o), RECEIVEWAL_OK);
    CHECK_STATUS("progress", receivewal_get_progress(rw, &progress), RECEIVEWAL_OK);
    CHECK("both are written", progress.mirrors == 2 && progress.mirrors_failed == 0, "%d", (int)progress.mirrors);
    CHECK_STATUS("detached", receivewal_detach(rw), RECEIVEWAL_OK);
    CHECK("the connection is the host's again", pg_usable(conn), "%s", PQerrorMessage(conn));
}

static const char *suffix;
static int right_names, wrong_names;

static int on_segment(void *ctx, const receivewal_segment *segment)
{
    (void)ctx;
    *(strstr(segment->name, suffix) == segment->name + 24 ? &right_names : &wrong_names) += 1;
    return 0;
}

static void compressed(PGconn *conn, receivewal_options *o, char **argv)
{
    static const char *const suffixes[] = { ".crypt" };
    receivewal_check_options options = RECEIVEWAL_CHECK_OPTIONS_INIT;
    receivewal_check with = RECEIVEWAL_CHECK_INIT, without = RECEIVEWAL_CHECK_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal *rw = pg_attach(conn);

    suffix = argv[4];
    o->end_lsn = pg_lsn(argv[0]);
    o->compression = (receivewal_compression)atoi(argv[1]);
    o->compression_level = atoi(argv[2]);
    o->compression_workers = atoi(argv[3]);
    o->suffixes = suffixes;
    o->suffix_count = 1;
    o->events.segment_opened = on_segment;
    o->events.segment_completed = on_segment;
    CHECK_STATUS("received", receivewal_receive(rw, o), RECEIVEWAL_OK);
    CHECK("the events' names", right_names > 1 && wrong_names == 0, "%d right, %d wrong", right_names, wrong_names);
    CHECK_STATUS("progress", receivewal_get_progress(rw, &progress), RECEIVEWAL_OK);
    CHECK("bytes stored", progress.stored_bytes > 0 && progress.stored_bytes < progress.bytes / 2, "%lld of %lld",
          (long long)progress.stored_bytes, (long long)progress.bytes);
    CHECK("the segment's name", strcmp(progress.segment + 24, suffix) == 0, "%s", progress.segment);
    CHECK_STATUS("detached", receivewal_detach(rw), RECEIVEWAL_OK);

    options.decode = 1;
    CHECK_STATUS("check", receivewal_check_directory(o->directory, &options, &without), RECEIVEWAL_OK);
    options.suffixes = suffixes;
    options.suffix_count = 1;
    CHECK_STATUS("check with suffixes", receivewal_check_directory(o->directory, &options, &with), RECEIVEWAL_OK);
    CHECK("one is complete only with them", with.problems == 0 && without.problems == 1 && with.segments == without.segments + 1,
          "%lld and %lld problems", (long long)with.problems, (long long)without.problems);
    options.suffixes = NULL;
    CHECK_ERROR("no list", receivewal_check_directory(o->directory, &options, &with), RECEIVEWAL_ERR_INVALID, NULL, "suffixes");
}

static void restore(const char *directory, char **argv)
{
    receivewal_status status = receivewal_restore(directory, argv[0], argv[1]);

    CHECK("restored", (int)status == atoi(argv[2]), "%d: %s", (int)status, receivewal_errmsg(NULL));
    CHECK_ERROR("no name", receivewal_restore(directory, NULL, argv[1]), RECEIVEWAL_ERR_INVALID, NULL, "name is NULL");
    CHECK_ERROR("no target", receivewal_restore(directory, argv[0], ""), RECEIVEWAL_ERR_INVALID, NULL, "target is empty");
    CHECK_ERROR("no directory", receivewal_restore("/no/such/folder", argv[0], argv[1]), RECEIVEWAL_ERR_NO_DIRECTORY, NULL, "/no/such/folder");
    CHECK_ERROR("nowhere to write it", receivewal_restore(directory, "nothing", "/no/such/folder/x"), RECEIVEWAL_ERR_NO_FILE, NULL, "nothing");
    CHECK("the name of it", strcmp(receivewal_strerror(RECEIVEWAL_ERR_NO_FILE), "no such file of the WAL") == 0, "%s",
          receivewal_strerror(RECEIVEWAL_ERR_NO_FILE));
}

static void invalid(PGconn *conn, receivewal_options *o)
{
    receivewal *rw = pg_attach(conn);

    o->repair = (receivewal_repair)7;
    CHECK_ERROR("repair", receivewal_receive(rw, o), RECEIVEWAL_ERR_INVALID, rw, "repair");
    o->repair = RECEIVEWAL_REPAIR;
    o->on_disk_full = (receivewal_on_disk_full)7;
    CHECK_ERROR("on_disk_full", receivewal_receive(rw, o), RECEIVEWAL_ERR_INVALID, rw, "on_disk_full");
    o->on_disk_full = RECEIVEWAL_DISK_FULL_FAIL;
    o->flush_interval = -1;
    CHECK_ERROR("flush_interval", receivewal_receive(rw, o), RECEIVEWAL_ERR_INVALID, rw, "flush_interval");
    o->flush_interval = 0;
    o->mirror_count = 1;
    CHECK_ERROR("mirrors", receivewal_receive(rw, o), RECEIVEWAL_ERR_INVALID, rw, "mirrors is NULL");
    o->mirrors = (const char *const[]){ "" };
    CHECK_ERROR("a mirror without a name", receivewal_receive(rw, o), RECEIVEWAL_ERR_INVALID, rw, "mirrors is empty");
    o->mirrors = (const char *const[]){ NULL };
    CHECK_ERROR("a mirror that is NULL", receivewal_receive(rw, o), RECEIVEWAL_ERR_INVALID, rw, "mirrors is NULL");
    o->mirror_count = 17;
    CHECK_ERROR("mirror_count", receivewal_receive(rw, o), RECEIVEWAL_ERR_INVALID, rw, "mirror_count");
    CHECK("the directory is untouched", entries(o->directory) == -1, "%d entries", entries(o->directory) + 1); /* see entries */
    CHECK_STATUS("detached", receivewal_detach(rw), RECEIVEWAL_OK);
}

int main(int argc, char **argv)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    PGconn *conn;

    REQUIRE(argc >= 4);
    conn = pg_connect(argv[1], "archive");
    o.directory = argv[2];
    if (strcmp(argv[3], "receive") == 0 && argc == 11)
        with_holes(conn, &o, argv + 4);
    else if (strcmp(argv[3], "check") == 0 && argc == 6)
        check(argv[2], argv + 4);
    else if (strcmp(argv[3], "mirrors") == 0 && argc == 8)
        mirrors(conn, &o, argv + 4);
    else if (strcmp(argv[3], "compressed") == 0 && argc == 9)
        compressed(conn, &o, argv + 4);
    else if (strcmp(argv[3], "restore") == 0 && argc == 7)
        restore(argv[2], argv + 4);
    else if (strcmp(argv[3], "full") == 0 && argc == 5)
        full(conn, &o, argv + 4);
    else
        invalid(conn, &o);
    PQfinish(conn);
    return 0;
}
