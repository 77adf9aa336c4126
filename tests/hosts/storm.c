/*
 * A host whose signals are its own: it gets thousands while it receives on two connections, on its one thread, and each of
 * its handlers runs there, with 64 KiB of stack.
 *
 *     storm CONNINFO FOLDER COUNT     eight children, one for each way to install a handler; each handles COUNT signals
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "postgres.h"

/* SIGINT and SIGTERM are stopped with; the others only counted. */
static const int signals[] = { SIGHUP, SIGCHLD, SIGALRM, SIGUSR1, SIGUSR2, SIGPIPE, SIGINT, SIGTERM };
enum { SIGNALS = sizeof(signals) / sizeof(signals[0]), STACK = 64 * 1024, STREAMS = 2 };

static pid_t main_thread;
static volatile sig_atomic_t handled[NSIG], elsewhere, errno_changed, stopping;
static receivewal *handles[STREAMS];

static void use_stack(int signal)
{
    volatile char stack[STACK];

    for (size_t i = 0; i < sizeof(stack); i += 256)
        stack[i] = (char)i;
    handled[signal]++;
    if ((pid_t)syscall(SYS_gettid) != main_thread)
        elsewhere++;
}

static void on_signal(int signal)
{
    const int saved = errno;

    use_stack(signal);
    errno = 4711;
    if (stopping)
        for (int i = 0; i < STREAMS; i++)
            receivewal_stop(handles[i]);
    errno_changed |= errno != 4711;
    errno = saved;
}

static void install(bool on_stack, bool restart)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = (on_stack ? SA_ONSTACK : 0) | (restart ? SA_RESTART : 0) };
    static char memory[(SIGNALS + 1) * (STACK + 16384)]; /* each may interrupt the others */
    stack_t stack = { .ss_sp = memory, .ss_size = sizeof(memory) };

    if (on_stack)
        REQUIRE(sigaltstack(&stack, NULL) == 0);
    for (size_t i = 0; i < SIGNALS; i++)
        REQUIRE(sigaction(signals[i], &action, NULL) == 0);
}

/* SA_RESTORER: the C library adds it to whatever it sets, and shows it. */
#define RESTORER 0x04000000

static int changed_dispositions(const struct sigaction before[NSIG])
{
    int changed = 0;

    for (int i = 1; i < NSIG; i++)
    {
        struct sigaction now;

        /* The three that make Go's panics, which pass on what is not Go's own (loader/core.c). */
        if (i == SIGSEGV || i == SIGBUS || i == SIGFPE || sigaction(i, NULL, &now) != 0)
            continue;
        if (now.sa_handler != before[i].sa_handler || ((now.sa_flags ^ before[i].sa_flags) & ~RESTORER) != 0 ||
            memcmp(&now.sa_mask, &before[i].sa_mask, 8) != 0)
        {
            printf("# signal %d has another disposition\n", i);
            changed++;
        }
    }
    return changed;
}

/* ------------------------------------------------------------------------------------------- the sender */

static pid_t send_signals(void)
{
    const pid_t host = getpid(), pid = fork();

    REQUIRE(pid >= 0);
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (unsigned i = 0; getppid() == host; i++)
    {
        kill(host, signals[i % SIGNALS]);
        if (i % SIGNALS == 0)
            usleep(10);
    }
    _exit(0);
}

static int total_handled(void)
{
    int total = 0;

    for (int i = 0; i < NSIG; i++)
        total += handled[i];
    return total;
}

/* ------------------------------------------------------------------------------------------- the streams */

static PGconn *connections[STREAMS];
static int completed[STREAMS];

static int on_completed(void *ctx, const receivewal_segment *segment)
{
    (void)segment;
    ++*(int *)ctx;
    return 0;
}

/* Receives until so many signals were handled, and some segments completed; then stops. */
static bool receive_in_the_storm(int count)
{
    struct pollfd polls[STREAMS];
    receivewal_status status[STREAMS] = { RECEIVEWAL_PENDING, RECEIVEWAL_PENDING };

    for (int i = 0; i < STREAMS; i++)
        polls[i] = (struct pollfd){ .fd = receivewal_event_fd(handles[i]), .events = POLLIN };
    while (status[0] == RECEIVEWAL_PENDING || status[1] == RECEIVEWAL_PENDING)
    {
        poll(polls, STREAMS, 1000);
        for (int i = 0; i < STREAMS; i++)
            if (status[i] == RECEIVEWAL_PENDING)
            {
                status[i] = receivewal_dispatch(handles[i]);
                if (status[i] != RECEIVEWAL_PENDING)
                    polls[i].fd = -1;
            }
        if (total_handled() >= count && completed[0] >= 2 && completed[1] >= 2)
            for (int i = 0; i < STREAMS; i++)
                if (status[i] == RECEIVEWAL_PENDING)
                    receivewal_stop(handles[i]);
    }
    for (int i = 0; i < STREAMS; i++)
        if (status[i] != RECEIVEWAL_ERR_STOPPED)
            printf("# %d %s\n", (int)status[i], receivewal_errmsg(handles[i]));
    return status[0] == RECEIVEWAL_ERR_STOPPED && status[1] == RECEIVEWAL_ERR_STOPPED;
}

static void stopped_by_a_handler(receivewal_options *o, int signal)
{
    struct itimerval timer = { { 0, 0 }, { 0, 300000 } };
    char name[100];

    stopping = 1;
    snprintf(name, sizeof(name), "receivewal_stop in a handler of signal %d", signal);
    if (signal == SIGALRM)
        setitimer(ITIMER_REAL, &timer, NULL);
    else if (fork() == 0)
    {
        sleep_ms(300);
        kill(getppid(), signal);
        _exit(0);
    }
    CHECK_STATUS(name, receivewal_receive(handles[0], o), RECEIVEWAL_ERR_STOPPED);
    stopping = 0;
}

static void one_way(const char *conninfo, const char *folder, int number, int count)
{
    const bool before = number & 1, on_stack = number & 2, restart = number & 4;
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    struct sigaction dispositions[NSIG];
    sigset_t mask, mask_then;
    char name[200], directory[PATH_MAX];
    int missing = 0;
    pid_t sender;

    snprintf(name, sizeof(name), "handlers installed %s, %s SA_ONSTACK, %s SA_RESTART", before ? "before" : "after",
             on_stack ? "with" : "without", restart ? "with" : "without");
    main_thread = (pid_t)syscall(SYS_gettid);
    signal(SIGWINCH, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    sigemptyset(&mask);
    sigaddset(&mask, SIGQUIT);
    sigaddset(&mask, SIGRTMIN + 3);
    REQUIRE(sigprocmask(SIG_SETMASK, &mask, NULL) == 0);
    if (before)
        install(on_stack, restart);
    for (int i = 1; i < NSIG; i++)
        sigaction(i, NULL, &dispositions[i]);
    for (int i = 0; i < STREAMS; i++)
    {
        connections[i] = pg_connect(conninfo, "storm");
        handles[i] = pg_attach(connections[i]);
    }
    CHECK("dispositions after the core was loaded", changed_dispositions(dispositions) == 0, "%s: changed", name);
    if (!before)
        install(on_stack, restart);
    for (int i = 1; i < NSIG; i++)
        sigaction(i, NULL, &dispositions[i]);

    sender = send_signals();
    o.events.segment_completed = on_completed;
    for (int i = 0; i < STREAMS; i++)
    {
        o.events.ctx = &completed[i];
        o.directory = numbered(folder, number * STREAMS + i, directory);
        REQUIRE(receivewal_start(handles[i], &o) == RECEIVEWAL_OK);
    }
    CHECK("streams in a storm", receive_in_the_storm(count), "%s", name);
    kill(sender, SIGKILL);
    while (waitpid(sender, NULL, 0) < 0 && errno == EINTR)
        ;
    for (size_t i = 0; i < SIGNALS; i++)
        missing += handled[signals[i]] == 0;
    CHECK(name, total_handled() >= count && missing == 0, "%d handled, %d of the kinds never", total_handled(), missing);
    CHECK("handlers run on the host's thread", elsewhere == 0, "%s: %d did not", name, (int)elsewhere);
    REQUIRE(sigprocmask(SIG_SETMASK, NULL, &mask_then) == 0);
    CHECK("the mask is as it was", memcmp(&mask, &mask_then, 8) == 0, "%s: changed", name);
    CHECK("dispositions after the streams", changed_dispositions(dispositions) == 0, "%s: changed", name);
    stopped_by_a_handler(&o, SIGALRM);
    stopped_by_a_handler(&o, SIGTERM);
    stopped_by_a_handler(&o, SIGINT);
    CHECK("stop in a handler leaves errno alone", errno_changed == 0, "it changed");
    for (int i = 0; i < STREAMS; i++)
    {
        CHECK_STATUS("detach", receivewal_detach(handles[i]), RECEIVEWAL_OK);
        CHECK("the connection is the host's again", pg_usable(connections[i]), "%s", PQerrorMessage(connections[i]));
        PQfinish(connections[i]);
    }
}

/* ----------------------------------------------------------------------------------- a dead connection */

static int cut(void *ctx, const receivewal_segment *segment)
{
    (void)segment;
    /* From here on a write is one to a dead connection, which raises SIGPIPE where nobody takes care. */
    shutdown(*(int *)ctx, SHUT_WR);
    return 0;
}

/* SIGPIPE kills, unless the library keeps it away. */
static void dead_connection(const char *conninfo, const char *folder, int number)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;
    PGconn *conn;
    char directory[PATH_MAX];
    receivewal *rw;
    int fd;

    signal(SIGPIPE, SIG_DFL);
    conn = pg_connect(conninfo, "dead");
    fd = PQsocket(conn);
    rw = pg_attach(conn);
    o.directory = numbered(folder, number, directory);
    o.status_interval = 1;
    o.synchronous = 1;
    o.events.ctx = &fd;
    o.events.segment_opened = cut;
    CHECK_STATUS("a write to a dead connection is an error", receivewal_receive(rw, &o), RECEIVEWAL_ERR_CONNECTION);
    CHECK("SIGPIPE still is the host's", signal(SIGPIPE, SIG_DFL) == SIG_DFL, "it is not");
    receivewal_detach(rw);
    PQfinish(conn);
}

int main(int argc, char **argv)
{
    REQUIRE(argc == 4);
    setvbuf(stdout, NULL, _IONBF, 0);
    for (int number = 0; number < 9; number++)
    {
        pid_t pid = fork();
        int status = 0;

        REQUIRE(pid >= 0);
        if (pid == 0)
        {
            if (number < 8)
                one_way(argv[1], argv[2], number, atoi(argv[3]));
            else
                dead_connection(argv[1], argv[2], number * STREAMS);
            exit(0);
        }
        REQUIRE(waitpid(pid, &status, 0) == pid);
        CHECK("no signal ends the host", status == 0, "child %d: %x", number, (unsigned)status);
    }
    return 0;
}
