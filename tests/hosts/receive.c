/* A receive as a host sees it: callbacks, stops, the background mode, and what is left behind. */
#include <errno.h>
#include <poll.h>

#include "server.h"

static pthread_t caller;

typedef struct seen
{
    receivewal *rw;
    int opened, completed, logs, progress;
    int stop_after;      /* answer non-zero after so many segments */
    int stop_call_after; /* call receivewal_stop after so many */
    bool late;           /* once there is nothing to stop any more */
    bool elsewhere;      /* a callback ran on another thread */
    bool disorder;
    bool reentered;      /* a call on the handle was let in from a callback */
    bool progress_refused;
    receivewal_lsn next;
} seen;

static void on_log(void *ctx, receivewal_log_level level, const char *text)
{
    seen *s = ctx;

    s->logs++;
    s->elsewhere |= !pthread_equal(pthread_self(), caller);
    s->disorder |= text == NULL || strchr(text, '\n') != NULL || level < RECEIVEWAL_LOG_DEBUG;
}

static int on_opened(void *ctx, const receivewal_segment *segment)
{
    seen *s = ctx;

    s->opened++;
    s->disorder |= strstr(segment->name, ".partial") == NULL;
    s->elsewhere |= !pthread_equal(pthread_self(), caller);
    return 0;
}

static int on_completed(void *ctx, const receivewal_segment *segment)
{
    seen *s = ctx;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    char name[RECEIVEWAL_SEGMENT_NAME_LEN];

    s->completed++;
    receivewal_segment_name(1, segment->lsn, SERVER_SEGMENT, name);
    s->disorder |= strcmp(name, segment->name) != 0 || segment->size != sizeof(*segment) || segment->timeline != 1 ||
                   segment->segment_size != SERVER_SEGMENT || segment->end_lsn != segment->lsn + SERVER_SEGMENT ||
                   (s->next != 0 && s->next != segment->lsn);
    s->next = segment->end_lsn;
    s->elsewhere |= !pthread_equal(pthread_self(), caller);

    options.directory = "/tmp";
    s->reentered |= receivewal_identify(s->rw, &system) != RECEIVEWAL_ERR_BUSY ||
                    receivewal_receive(s->rw, &options) != RECEIVEWAL_ERR_BUSY ||
                    receivewal_start(s->rw, &options) != RECEIVEWAL_ERR_BUSY || receivewal_wait(s->rw, -1) != RECEIVEWAL_ERR_BUSY ||
                    receivewal_dispatch(s->rw) != RECEIVEWAL_ERR_BUSY || receivewal_detach(s->rw) != RECEIVEWAL_ERR_BUSY ||
                    receivewal_connection_usable(s->rw) != 0 || strstr(receivewal_errmsg(s->rw), "in progress") == NULL;
    s->progress_refused |= receivewal_get_progress(s->rw, &progress) != RECEIVEWAL_OK || progress.written_lsn < segment->end_lsn;
    if (s->completed == s->stop_call_after)
    {
        if (s->late)
            wait_for_state(s->rw, true);
        receivewal_stop(s->rw);
    }
    return s->stop_after != 0 && s->completed >= s->stop_after;
}

static int on_progress(void *ctx, const receivewal_progress *progress)
{
    seen *s = ctx;

    s->progress++;
    s->disorder |= progress->size != sizeof(*progress) || progress->flushed_lsn > progress->written_lsn;
    s->elsewhere |= !pthread_equal(pthread_self(), caller);
    return 0;
}

static receivewal_options options_for(seen *s, const char *directory)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;

    o.directory = directory;
    o.start_lsn = SERVER_START;
    o.progress_interval = 1;
    o.events.ctx = s;
    o.events.log = on_log;
    o.events.segment_opened = on_opened;
    o.events.segment_completed = on_completed;
    o.events.progress = on_progress;
    return o;
}

static void check_seen(const seen *s)
{
    CHECK("callbacks run on the calling thread", !s->elsewhere, "elsewhere");
    CHECK("events come in order and say what they should", !s->disorder, "disorder");
    CHECK("calls inside a callback are refused", !s->reentered, "one was let in");
    CHECK("progress inside a callback works", !s->progress_refused, "not so");
}

static bool usable_again(receivewal *rw)
{
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

    return receivewal_connection_usable(rw) == 1 && receivewal_identify(rw, &system) == RECEIVEWAL_OK &&
           system.system_identifier == SERVER_SYSTEM && system.segment_size == SERVER_SEGMENT && system.timeline == 1 &&
           system.data_directory_mode == 0750;
}

static void until_the_end(void)
{
    server server;
    int fd = server_start(&server, SERVER_START + 5 * SERVER_SEGMENT + 1000, 0);
    seen s = { .rw = attach(fd) };
    receivewal_options o = options_for(&s, new_directory());
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

    o.end_lsn = SERVER_START + 5 * SERVER_SEGMENT;
    CHECK("usable before", usable_again(s.rw), "%s", receivewal_errmsg(s.rw));
    CHECK_STATUS("receive to end_lsn", receivewal_receive(s.rw, &o), RECEIVEWAL_OK);
    CHECK("no error text after success", receivewal_errmsg(s.rw)[0] == '\0', "%s", receivewal_errmsg(s.rw));
    CHECK("every segment completed, once", s.completed == 5, "%d", s.completed);
    CHECK("log messages came", s.logs > 0, "none");
    CHECK("usable after", usable_again(s.rw), "%s", receivewal_errmsg(s.rw));
    check_seen(&s);
    CHECK_STATUS("progress stays", receivewal_get_progress(s.rw, &progress), RECEIVEWAL_OK);
    CHECK("progress says where it ended",
          progress.state == RECEIVEWAL_STATE_IDLE && progress.segments == 5 && progress.start_lsn == SERVER_START &&
              progress.flushed_lsn >= o.end_lsn && progress.timeline == 1,
          "state %d, %d segments", (int)progress.state, (int)progress.segments);
    CHECK_STATUS("detach", receivewal_detach(s.rw), RECEIVEWAL_OK);
    server_stop(&server);
    close(fd);
}

static void stopped_by_a_callback(bool by_call)
{
    server server;
    /* 80 ms a segment: after 3 it takes some 2 s until there are 30. */
    int fd = server_start(&server, SERVER_START + 1000 * (uint64_t)SERVER_SEGMENT, 10000);
    seen s = { .rw = attach(fd), .stop_after = by_call ? 0 : 3, .stop_call_after = by_call ? 3 : 0 };
    receivewal_options o = options_for(&s, new_directory());

    CHECK_ERROR(by_call ? "receivewal_stop in a callback" : "non-zero answer of a callback", receivewal_receive(s.rw, &o),
                RECEIVEWAL_ERR_STOPPED, s.rw, "stopped");
    CHECK("it ended soon after", s.completed >= 3 && s.completed < 30, "%d segments", s.completed);
    CHECK("the next call is not stopped too", usable_again(s.rw), "%s", receivewal_errmsg(s.rw));
    check_seen(&s);
    receivewal_detach(s.rw);
    server_stop(&server);
    close(fd);
}

/* A stop that comes while the last events are delivered, when it is all over, must not leak into the next call. */
static void stopped_when_it_was_over(bool in_the_background)
{
    server server;
    int fd = server_start(&server, SERVER_START + 2 * SERVER_SEGMENT + 1, 0);
    seen s = { .rw = attach(fd), .stop_call_after = 2, .late = true };
    receivewal_options o = options_for(&s, new_directory());
    receivewal_status status;

    o.end_lsn = SERVER_START + 2 * SERVER_SEGMENT;
    if (in_the_background)
    {
        REQUIRE(receivewal_start(s.rw, &o) == RECEIVEWAL_OK);
        CHECK("it is over", wait_for_state(s.rw, true) == RECEIVEWAL_STATE_IDLE, "it is not");
        CHECK("not usable before the result was taken", receivewal_connection_usable(s.rw) == 0, "usable");
        CHECK_ERROR("nor can it be detached", receivewal_detach(s.rw), RECEIVEWAL_ERR_BUSY, s.rw, "receivewal_wait");
        status = receivewal_wait(s.rw, -1);
    }
    else
        status = receivewal_receive(s.rw, &o);
    CHECK("a stop after the end changes nothing", status == RECEIVEWAL_OK && s.completed == 2, "%d: %s", (int)status,
          receivewal_errmsg(s.rw));
    CHECK("nor does it end the next call", usable_again(s.rw), "%s", receivewal_errmsg(s.rw));
    receivewal_detach(s.rw);
    server_stop(&server);
    close(fd);
}

static void stop_before(void)
{
    server server;
    int fd = server_start(&server, SERVER_START, 0), commands;
    seen s = { .rw = attach(fd) };
    receivewal_options o = options_for(&s, new_directory());
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

    for (int i = 0; i < 3; i++)
        CHECK_STATUS("stop while nothing runs", receivewal_stop(s.rw), RECEIVEWAL_OK);
    CHECK_ERROR("a stop ends the next call", receivewal_receive(s.rw, &o), RECEIVEWAL_ERR_STOPPED, s.rw, "stopped");
    commands = atomic_load(&server.commands);
    CHECK("before it sends anything", commands == 0, "%d commands", commands);
    CHECK("and only that one", usable_again(s.rw), "%s", receivewal_errmsg(s.rw));
    receivewal_stop(s.rw);
    CHECK_STATUS("a question too", receivewal_identify(s.rw, &system), RECEIVEWAL_ERR_STOPPED);
    receivewal_detach(s.rw);
    server_stop(&server);
    close(fd);
}

static void in_the_background(void)
{
    server server;
    int fd = server_start(&server, SERVER_START + 1000 * (uint64_t)SERVER_SEGMENT, 1000);
    seen s = { .rw = attach(fd) };
    char directory[100];
    receivewal_options o;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_status status;
    struct pollfd p = { .events = POLLIN };
    char back[1000];
    int64_t began;

    REQUIRE(getcwd(back, sizeof(back)) != NULL);
    snprintf(directory, sizeof(directory), "%s", new_directory());
    o = options_for(&s, directory);
    CHECK_ERROR("wait without a start", receivewal_wait(s.rw, 0), RECEIVEWAL_ERR_BUSY, s.rw, "nothing was started");
    CHECK_ERROR("dispatch without a start", receivewal_dispatch(s.rw), RECEIVEWAL_ERR_BUSY, s.rw, "nothing was started");
    CHECK_STATUS("start", receivewal_start(s.rw, &o), RECEIVEWAL_OK);
    CHECK("a start that works clears the text", receivewal_errmsg(s.rw)[0] == '\0', "%s", receivewal_errmsg(s.rw));
    /* Everything was copied, and the directory is that of the moment of the call. */
    REQUIRE(chdir("/") == 0);
    memset(directory, 'x', sizeof(directory));
    memset(&o, 0xff, sizeof(o));
    CHECK("no callback runs by itself", (sleep_ms(100), s.logs == 0), "%d", s.logs);
    CHECK_ERROR("detach meanwhile", receivewal_detach(s.rw), RECEIVEWAL_ERR_BUSY, s.rw, "receivewal_wait");
    CHECK_ERROR("identify meanwhile", receivewal_identify(s.rw, &system), RECEIVEWAL_ERR_BUSY, s.rw, "receivewal_wait");
    CHECK("not usable meanwhile", receivewal_connection_usable(s.rw) == 0, "usable");
    CHECK_STATUS("progress meanwhile", receivewal_get_progress(s.rw, &progress), RECEIVEWAL_OK);
    CHECK("state meanwhile", progress.state != RECEIVEWAL_STATE_IDLE, "%d", (int)progress.state);
    began = milliseconds();
    CHECK_STATUS("wait for a while", receivewal_wait(s.rw, 300), RECEIVEWAL_PENDING);
    CHECK("it waited so long", milliseconds() - began >= 300 && milliseconds() - began < 10000, "%d ms", (int)(milliseconds() - began));
    for (began = milliseconds(); (s.completed == 0 || s.progress == 0) && milliseconds() - began < 60000;)
        REQUIRE(receivewal_wait(s.rw, 100) == RECEIVEWAL_PENDING);
    CHECK("callbacks ran", s.completed > 0 && s.progress > 0, "%d segments, %d progress", s.completed, s.progress);

    p.fd = receivewal_event_fd(s.rw);
    CHECK("event_fd is close-on-exec", fcntl(p.fd, F_GETFD) == FD_CLOEXEC, "not so");
    CHECK("event_fd becomes readable", poll(&p, 1, 5000) == 1 && p.revents == POLLIN, "%d", p.revents);
    CHECK_STATUS("dispatch", receivewal_dispatch(s.rw), RECEIVEWAL_PENDING);
    CHECK_STATUS("stop", receivewal_stop(s.rw), RECEIVEWAL_OK);
    for (began = milliseconds();;)
    {
        REQUIRE(poll(&p, 1, 5000) == 1);
        status = receivewal_dispatch(s.rw);
        if (status != RECEIVEWAL_PENDING || milliseconds() - began > 10000)
            break;
    }
    CHECK("dispatch gives the result", status == RECEIVEWAL_ERR_STOPPED, "%d: %s", (int)status, receivewal_errmsg(s.rw));
    CHECK("then event_fd is quiet", poll(&p, 1, 50) == 0, "readable");
    CHECK_ERROR("the result is given once", receivewal_wait(s.rw, 0), RECEIVEWAL_ERR_BUSY, s.rw, "nothing was started");
    CHECK("usable after", usable_again(s.rw), "%s", receivewal_errmsg(s.rw));
    check_seen(&s);
    receivewal_detach(s.rw);
    REQUIRE(chdir(back) == 0);
    server_stop(&server);
    close(fd);
}

static void the_servers_errors(void)
{
    server server;
    int fd = server_start(&server, SERVER_START, 0);
    receivewal *rw = attach(fd);
    receivewal_slot slot = RECEIVEWAL_SLOT_INIT;
    const char *message;

    CHECK_ERROR("the server's error", receivewal_drop_slot(rw, "gone", 0), RECEIVEWAL_ERR_NO_SLOT, rw, "replication slot \"\xe9\" does not exist");
    CHECK("sqlstate", strcmp(receivewal_sqlstate(rw), "42704") == 0, "%s", receivewal_sqlstate(rw));
    CHECK("detail, byte for byte", strcmp(receivewal_errdetail(rw), "a \xff detail") == 0, "%s", receivewal_errdetail(rw));
    CHECK("hint", strcmp(receivewal_errhint(rw), "a hint") == 0, "%s", receivewal_errhint(rw));
    message = receivewal_errmsg(rw);
    {
        receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

        receivewal_get_progress(rw, &progress);
        receivewal_stop(rw);
        receivewal_connection_usable(rw);
        CHECK("looking keeps the text where it is", receivewal_errmsg(rw) == message && message[0] != '\0', "moved");
        CHECK_STATUS("the stop", receivewal_read_slot(rw, "s", &slot), RECEIVEWAL_ERR_STOPPED);
        CHECK("the next error has no sqlstate", receivewal_sqlstate(rw)[0] == '\0' && receivewal_errhint(rw)[0] == '\0', "%s",
              receivewal_sqlstate(rw));
    }
    CHECK_STATUS("read_slot", receivewal_read_slot(rw, "s", &slot), RECEIVEWAL_OK);
    CHECK("what it found", slot.restart_lsn == SERVER_START && slot.restart_timeline == 1, "%llx", (unsigned long long)slot.restart_lsn);
    CHECK("success clears the text", receivewal_errmsg(rw)[0] == '\0', "%s", receivewal_errmsg(rw));
    receivewal_detach(rw);
    server_stop(&server);
    close(fd);
}

static void the_connection_is_lost(void)
{
    server server;
    int fd = server_start(&server, SERVER_START + 1000 * (uint64_t)SERVER_SEGMENT, 5000);
    seen s = { .rw = attach(fd) };
    receivewal_options o = options_for(&s, new_directory());

    REQUIRE(receivewal_start(s.rw, &o) == RECEIVEWAL_OK);
    sleep_ms(200);
    server_stop(&server);
    CHECK_STATUS("a lost connection", receivewal_wait(s.rw, -1), RECEIVEWAL_ERR_CONNECTION);
    CHECK("not usable then", receivewal_connection_usable(s.rw) == 0, "usable");
    CHECK("a sentence", strlen(receivewal_errmsg(s.rw)) > 10, "%s", receivewal_errmsg(s.rw));
    CHECK_STATUS("detach still works", receivewal_detach(s.rw), RECEIVEWAL_OK);
    close(fd);
}

/* A host that doesn't come for its events for long gets every segment, and not every log line. */
static void nobody_listens(void)
{
    server server;
    int fd = server_start(&server, SERVER_START + 40 * (uint64_t)SERVER_SEGMENT + 1, 0);
    seen s = { .rw = attach(fd) };
    receivewal_options o = options_for(&s, new_directory());

    o.end_lsn = SERVER_START + 40 * (uint64_t)SERVER_SEGMENT;
    REQUIRE(receivewal_start(s.rw, &o) == RECEIVEWAL_OK);
    wait_for_state(s.rw, true);
    CHECK("no callback without a call", s.completed == 0, "%d", s.completed);
    CHECK_STATUS("all at once", receivewal_wait(s.rw, -1), RECEIVEWAL_OK);
    CHECK("every segment", s.completed == 40, "%d", s.completed);
    CHECK("progress only once", s.progress <= 1, "%d", s.progress);
    check_seen(&s);
    receivewal_detach(s.rw);
    server_stop(&server);
    close(fd);
}

int main(void)
{
    int before, after;

    caller = pthread_self();
    until_the_end();
    before = descriptors();
    stopped_by_a_callback(false);
    stopped_by_a_callback(true);
    stopped_when_it_was_over(false);
    stopped_when_it_was_over(true);
    stop_before();
    in_the_background();
    the_servers_errors();
    the_connection_is_lost();
    nobody_listens();
    after = descriptors();
    CHECK("no descriptor is left", after == before, "%d before, %d after", before, after);
    return 0;
}
