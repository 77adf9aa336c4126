/*
 * The host's signals stay the host's: its handlers, its masks, its threads. The handlers here need more stack than a
 * goroutine has, and lack SA_ONSTACK.
 */
#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "server.h"

static pid_t main_thread;
static _Atomic int handled, elsewhere;
static receivewal *handle;

static void need_stack(int signal)
{
    volatile char stack[100000];
    int saved = errno;

    (void)signal;
    for (size_t i = 0; i < sizeof(stack); i += 512)
        stack[i] = (char)i;
    atomic_fetch_add(&handled, 1);
    if ((pid_t)syscall(SYS_gettid) != main_thread)
        atomic_fetch_add(&elsewhere, 1);
    errno = saved;
}

static void stop(int signal)
{
    int saved = errno;

    need_stack(signal);
    errno = 12345;
    receivewal_stop(handle);
    if (errno != 12345)
        atomic_fetch_add(&elsewhere, 1000000);
    errno = saved;
}

static void install(int signal, void (*handler)(int))
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    REQUIRE(sigaction(signal, &action, NULL) == 0);
}

static const int signals[] = { SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGCHLD, SIGURG, SIGPROF, SIGVTALRM, SIGIO, SIGWINCH, SIGSTKFLT };

static void install_all(void)
{
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        install(signals[i], need_stack);
    install(SIGRTMIN, need_stack);
    install(SIGRTMIN + 5, need_stack);
}

/* Which of the signals each thread but this one leaves unblocked; faults apart. */
static uint64_t unblocked_elsewhere(void)
{
    const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGKILL, SIGSTOP, 32, 33 };
    uint64_t open = 0;
    DIR *d = opendir("/proc/self/task");
    struct dirent *entry;

    REQUIRE(d != NULL);
    while ((entry = readdir(d)) != NULL)
    {
        char name[300], line[200];
        unsigned long long blocked;
        FILE *f;

        if (entry->d_name[0] == '.' || atoi(entry->d_name) == main_thread)
            continue;
        snprintf(name, sizeof(name), "/proc/self/task/%s/status", entry->d_name);
        f = fopen(name, "r");
        if (f == NULL)
            continue;
        while (fgets(line, sizeof(line), f) != NULL)
            if (sscanf(line, "SigBlk: %llx", &blocked) == 1)
                open |= ~blocked;
        fclose(f);
    }
    closedir(d);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        open &= ~(UINT64_C(1) << (faults[i] - 1));
    return open;
}

/* A child that sends the signals, as fast as it can, until it is killed or alone. */
static pid_t storm(void)
{
    pid_t parent = getpid(), pid = fork();

    REQUIRE(pid >= 0);
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == parent)
        for (size_t i = 0; i <= sizeof(signals) / sizeof(signals[0]); i++)
        {
            kill(parent, i == sizeof(signals) / sizeof(signals[0]) ? SIGRTMIN : signals[i]);
            usleep(20);
        }
    _exit(0);
}

static int let_some_pass(void *ctx, const receivewal_segment *segment)
{
    (void)ctx;
    (void)segment;
    sleep_ms(1);
    return 0;
}

static void receive_in_a_storm(bool blocked)
{
    server server;
    int fd = server_start(&server, SERVER_START + 100 * (uint64_t)SERVER_SEGMENT, 1000);
    receivewal *rw = attach(fd);
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    receivewal_status status;
    sigset_t all, before, after;
    pid_t child;
    int wstatus;

    o.directory = new_directory();
    o.start_lsn = SERVER_START;
    o.end_lsn = SERVER_START + 90 * (uint64_t)SERVER_SEGMENT;
    o.events.segment_completed = let_some_pass;
    /* A host that waits for signals in one place only: every thread of ours that left one open would get it. */
    sigfillset(&all);
    pthread_sigmask(blocked ? SIG_SETMASK : SIG_BLOCK, blocked ? &all : NULL, &before);
    child = storm();
    status = receivewal_receive(rw, &o);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    kill(child, SIGKILL);
    waitpid(child, &wstatus, 0);
    CHECK(blocked ? "a receive while the host blocks all signals" : "a receive in a storm of signals", status == RECEIVEWAL_OK, "%d: %s",
          (int)status, receivewal_errmsg(rw));
    CHECK(blocked ? "no handler ran" : "handlers ran", blocked == (atomic_load(&handled) == 0), "%d", atomic_load(&handled));
    CHECK("none on another thread", atomic_load(&elsewhere) == 0, "%d", atomic_load(&elsewhere));
    CHECK("the mask is as it was", sigismember(&after, SIGUSR1) == blocked && sigismember(&after, SIGCHLD) == blocked, "it is not");
    if (blocked)
    {
        sigset_t pending;
        int missing = 0;

        sigpending(&pending);
        for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
            missing += !sigismember(&pending, signals[i]);
        CHECK("each signal waits for the host", missing == 0, "%d went elsewhere", missing);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    receivewal_detach(rw);
    server_stop(&server);
    close(fd);
}

static void handlers_stay(const struct sigaction before[NSIG])
{
    int changed = 0;

    for (int i = 1; i < NSIG; i++)
    {
        struct sigaction now;

        if (i == SIGSEGV || i == SIGBUS || i == SIGFPE || sigaction(i, NULL, &now) != 0)
            continue;
        if (now.sa_handler != before[i].sa_handler || (now.sa_flags & SA_ONSTACK) != (before[i].sa_flags & SA_ONSTACK))
        {
            printf("# signal %d was changed\n", i);
            changed++;
        }
    }
    CHECK("handlers and their flags are as they were", changed == 0, "%d changed", changed);
}

static void stopped_by_a_handler(void)
{
    server server;
    int fd = server_start(&server, SERVER_START + 1000 * (uint64_t)SERVER_SEGMENT, 1000);
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    struct itimerval timer = { { 0, 0 }, { 0, 300000 } };
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

    handle = attach(fd);
    o.directory = new_directory();
    o.start_lsn = SERVER_START;
    install(SIGALRM, stop);
    setitimer(ITIMER_REAL, &timer, NULL);
    CHECK_STATUS("stop in a signal handler", receivewal_receive(handle, &o), RECEIVEWAL_ERR_STOPPED);
    CHECK("on the calling thread, errno as it was", atomic_load(&elsewhere) == 0, "%d", atomic_load(&elsewhere));
    CHECK_STATUS("and the connection comes back", receivewal_identify(handle, &system), RECEIVEWAL_OK);
    receivewal_detach(handle);
    server_stop(&server);
    close(fd);
}

/* A host that crashes, crashes as it would without us. */
static void a_crash_of_the_host(void)
{
    int output[2], status;
    char text[100];
    ssize_t said;
    pid_t pid;

    REQUIRE(pipe(output) == 0);
    pid = fork();
    if (pid == 0)
    {
        int peer, fd = silent_connection(&peer);

        dup2(output[1], 1);
        dup2(output[1], 2);
        close(output[1]);
        attach(fd);
        *(volatile int *)8 = 1;
        _exit(0);
    }
    close(output[1]);
    said = read(output[0], text, sizeof(text));
    waitpid(pid, &status, 0);
    close(output[0]);
    CHECK("a crash of the host ends it by SIGSEGV", WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "status %x", (unsigned)status);
    CHECK("and nothing is printed", said == 0, "%.*s", said > 0 ? (int)said : 0, text);
}

static void last_words(int signal)
{
    (void)signal;
    _exit(42);
}

/* The one handler that Go must have: it passes on what was not Go's fault. */
static void a_crash_handler_of_the_host(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
    {
        int peer, fd = silent_connection(&peer);

        install(SIGSEGV, last_words);
        attach(fd);
        *(volatile int *)8 = 1;
        _exit(0);
    }
    waitpid(pid, &status, 0);
    CHECK("a crash of the host reaches the host's own handler", WIFEXITED(status) && WEXITSTATUS(status) == 42, "status %x", (unsigned)status);
}

int main(void)
{
    struct sigaction before[NSIG];
    int peer, fd = silent_connection(&peer);
    stack_t stack;

    setvbuf(stdout, NULL, _IONBF, 0);
    main_thread = (pid_t)syscall(SYS_gettid);
    a_crash_of_the_host();
    a_crash_handler_of_the_host();
    install(SIGTERM, need_stack);
    install(SIGCHLD, need_stack);
    signal(SIGUSR1, SIG_IGN);
    for (int i = 1; i < NSIG; i++)
        sigaction(i, NULL, &before[i]);
    receivewal_detach(attach(fd));
    handlers_stay(before);
    REQUIRE(sigaltstack(NULL, &stack) == 0);
    CHECK("no signal stack was set on the host's thread", (stack.ss_flags & SS_DISABLE) != 0, "one was");
    CHECK("no thread of ours takes a signal", unblocked_elsewhere() == 0, "%llx", (unsigned long long)unblocked_elsewhere());
    install_all();
    receive_in_a_storm(true);
    receive_in_a_storm(false);
    CHECK("no thread of ours takes a signal later", unblocked_elsewhere() == 0, "%llx", (unsigned long long)unblocked_elsewhere());
    atomic_store(&handled, 0);
    stopped_by_a_handler();
    return 0;
}
