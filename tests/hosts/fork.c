/* The rules of fork: a parent that never called stays as it was, and the child of one that did is told at once. */
#include <sys/wait.h>

#include "server.h"

/* Runs a function in a child; true if it returned true in time. */
static bool in_child(bool (*function)(void *), void *argument)
{
    pid_t pid = fork();
    int status;

    if (pid == 0)
    {
        alarm(10);
        _exit(function(argument) ? 0 : 1);
    }
    REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool uses_the_library(void *unused)
{
    server server;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal *rw = attach(server_start(&server, SERVER_START, 0));
    bool good = receivewal_identify(rw, &system) == RECEIVEWAL_OK && receivewal_detach(rw) == RECEIVEWAL_OK;

    (void)unused;
    return good && threads() > 1;
}

static bool is_told(void *handle)
{
    receivewal *rw = handle, *other;
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_slot slot = RECEIVEWAL_SLOT_INIT;
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    receivewal_check check = RECEIVEWAL_CHECK_INIT;
    receivewal_lsn lsn;
    char buffer[RECEIVEWAL_SEGMENT_NAME_LEN], text[RECEIVEWAL_LSN_LEN];
    int64_t began = milliseconds();
    int wrong = 0, peer;

    c.fd = silent_connection(&peer);
    options.directory = ".";
#define TOLD(call) wrong += (call) != RECEIVEWAL_ERR_FORKED || strstr(receivewal_errmsg(rw), "fork") == NULL
    TOLD(receivewal_attach(&c, &other));
    TOLD(receivewal_get_progress(rw, &progress));
    TOLD(receivewal_receive(rw, &options));
    TOLD(receivewal_start(rw, &options));
    TOLD(receivewal_wait(rw, -1));
    TOLD(receivewal_dispatch(rw));
    TOLD(receivewal_stop(rw));
    TOLD(receivewal_identify(rw, &system));
    TOLD(receivewal_create_slot(rw, "s", 0, &slot));
    TOLD(receivewal_drop_slot(rw, "s", 0));
    TOLD(receivewal_read_slot(rw, "s", &slot));
    TOLD(receivewal_find_start(".", 0, &start));
    TOLD(receivewal_check_directory(".", NULL, &check));
    TOLD(receivewal_restore(".", "x", "y"));
    TOLD(receivewal_detach(rw));
    wrong += receivewal_connection_usable(rw) != 0;
    wrong += receivewal_event_fd(rw) != -1;
    wrong += strstr(receivewal_errmsg(NULL), "fork") == NULL;
    wrong += receivewal_sqlstate(rw)[0] != '\0' || receivewal_errdetail(rw)[0] != '\0' || receivewal_errhint(rw)[0] != '\0';
    wrong += receivewal_lsn_parse("1/2", &lsn) != RECEIVEWAL_OK;
    wrong += receivewal_segment_name(1, lsn, SERVER_SEGMENT, buffer) != RECEIVEWAL_OK;
    wrong += receivewal_segment_parse(buffer, SERVER_SEGMENT, NULL, &lsn) != RECEIVEWAL_OK;
    wrong += receivewal_lsn_format(lsn, text) != text || receivewal_strerror(RECEIVEWAL_ERR_FORKED)[0] == '\0';
    wrong += strcmp(receivewal_version_string(), RECEIVEWAL_VERSION) != 0;
    wrong += receivewal_version() != RECEIVEWAL_VERSION_NUM;
    if (milliseconds() - began > 100)
        printf("# it took %d ms\n", (int)(milliseconds() - began));
    return wrong == 0 && milliseconds() - began < 10000; /* none waits; they take microseconds, but the machine may be busy */
}

static bool told_to_a_grandchild(void *rw)
{
    return in_child(is_told, rw);
}

static int fork_in_callback(void *ctx, const receivewal_segment *segment)
{
    int *good = ctx;
    pid_t pid = fork();
    int status;

    (void)segment;
    if (pid == 0)
    {
        if (*good % 2 == 0)
            execlp("true", "true", (char *)NULL);
        _exit(0);
    }
    if (pid > 0 && waitpid(pid, &status, 0) == pid && status == 0)
        ++*good;
    return 0;
}

/* The child of a callback that wrongly goes on into the library gets out of it. */
static int return_in_child(void *ctx, const receivewal_segment *segment)
{
    pid_t *child = ctx;

    (void)segment;
    if (*child < 0)
    {
        *child = fork();
        if (*child == 0)
            alarm(10);
    }
    return 0;
}

enum { FILES = 20 };

/* The child opens files, which get the numbers of the library's descriptors that were closed in it. */
static int open_in_child(void *ctx, const receivewal_problem *problem)
{
    int *files = ctx;

    (void)problem;
    if (files[0] < 0)
    {
        pid_t pid = fork();
        int status;

        files[0] = 0;
        REQUIRE(pid >= 0);
        if (pid != 0)
        {
            REQUIRE(waitpid(pid, &status, 0) == pid);
            CHECK("a forked child's own descriptors stay open", status == 0, "%x", (unsigned)status);
            return 1;
        }
        alarm(10);
        for (int i = 0; i < FILES; i++)
            files[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    return 1;
}

static void files_of_a_child(void)
{
    receivewal_check_options options = RECEIVEWAL_CHECK_OPTIONS_INIT;
    receivewal_check check = RECEIVEWAL_CHECK_INIT;
    const pid_t parent = getpid();
    receivewal_status status;
    char name[200];
    int files[FILES] = { -1 }, missing = 0;

    snprintf(name, sizeof(name), "%s/000000010000000000000001", new_directory());
    close(open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    *strrchr(name, '/') = '\0';
    options.ctx = files;
    options.problem = open_in_child;
    options.segment_size = SERVER_SEGMENT;
    status = receivewal_check_directory(name, &options, &check);
    if (getpid() != parent)
    {
        for (int i = 0; i < FILES; i++)
            missing += fcntl(files[i], F_GETFD) < 0;
        _exit(status == RECEIVEWAL_ERR_FORKED && missing == 0 ? 0 : 1);
    }
    CHECK_STATUS("the parent's check goes on", status, RECEIVEWAL_OK);
    CHECK("a problem was told of", files[0] == 0, "none was");
}

static void *first_use(void *unused)
{
    int peer, fd = silent_connection(&peer);

    receivewal_detach(attach(fd));
    return unused;
}

static bool first_use_now(void *unused)
{
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal_status status;
    receivewal *rw;
    int peer;

    (void)unused;
    c.fd = silent_connection(&peer);
    status = receivewal_attach(&c, &rw);
    return status == RECEIVEWAL_OK || status == RECEIVEWAL_ERR_FORKED;
}

/* A thread of this process makes its first call while another forks. */
static bool forks_meanwhile(void *delay)
{
    pthread_t thread;
    bool good;

    REQUIRE(pthread_create(&thread, NULL, first_use, NULL) == 0);
    usleep(*(useconds_t *)delay);
    good = in_child(first_use_now, NULL);
    pthread_join(thread, NULL);
    return good;
}

int main(void)
{
    server server;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_options options = RECEIVEWAL_OPTIONS_INIT;
    receivewal_status status;
    receivewal_lsn lsn;
    receivewal *rw;
    pid_t child = -1;
    int fd, good = 0;

    setvbuf(stdout, NULL, _IONBF, 0); /* a child must not print its parent's lines once more */
    receivewal_lsn_parse("1/2", &lsn);
    receivewal_detach(NULL);
    CHECK("a parent that never called has one thread", threads() == 1, "%d", threads());
    for (int i = 0; i < 3; i++)
        CHECK("each of its children can call", in_child(uses_the_library, NULL), "it cannot");
    CHECK("the parent still has one thread", threads() == 1, "%d", threads());
    for (int i = 0, bad = 0; i < 25; i++)
    {
        useconds_t delay = (useconds_t)i * 150;

        bad += !in_child(forks_meanwhile, &delay);
        if (i == 24)
            CHECK("fork while another thread makes the first call", bad == 0, "%d of 25 failed or hung", bad);
    }

    fd = server_start(&server, SERVER_START + 1000 * (uint64_t)SERVER_SEGMENT, 500);
    rw = attach(fd);
    CHECK("a child of a process that called is told, by every function, at once", in_child(is_told, rw), "not so");
    CHECK("a grandchild too", in_child(told_to_a_grandchild, rw), "not so");
    CHECK_STATUS("the parent goes on", receivewal_identify(rw, &system), RECEIVEWAL_OK);
    CHECK("the child's stop did not reach the parent", system.system_identifier == SERVER_SYSTEM, "it did");

    options.directory = new_directory();
    options.start_lsn = SERVER_START;
    options.end_lsn = SERVER_START + 10 * SERVER_SEGMENT;
    options.events.ctx = &good;
    options.events.segment_completed = fork_in_callback;
    status = receivewal_receive(rw, &options);
    CHECK("a callback may fork plain children", status == RECEIVEWAL_OK && good == 10, "status %d, %d children: %s", (int)status, good,
          receivewal_errmsg(rw));

    options.end_lsn = SERVER_START + 20 * SERVER_SEGMENT;
    options.events.ctx = &child;
    options.events.segment_completed = return_in_child;
    status = receivewal_receive(rw, &options);
    if (child == 0)
        _exit(status == RECEIVEWAL_ERR_FORKED ? 0 : 1);
    CHECK("the parent's receive goes on", status == RECEIVEWAL_OK, "%d: %s", (int)status, receivewal_errmsg(rw));
    {
        int child_status = -1;

        REQUIRE(child > 0 && waitpid(child, &child_status, 0) == child);
        CHECK("a child that returns into the library gets out", child_status == 0, "%x", (unsigned)child_status);
    }
    files_of_a_child();
    CHECK_STATUS("detach", receivewal_detach(rw), RECEIVEWAL_OK);
    server_stop(&server);
    return 0;
}
