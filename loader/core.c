/*
 * core.c: libreceivewal-core.so.1, the Go half: loading it, and calling it.
 *
 * The core is loaded on the first call that needs it, since the Go runtime starts threads when it is loaded, threads do
 * not survive a fork, and a host may fork before its children use the library.
 *
 * All of the host's signals stay on the host's threads. Go's threads inherit the signal mask of the thread that loads
 * the core, so every signal is blocked around dlopen but those that a fault raises. No thread of the host enters Go either: a
 * thread that does gets an alternate signal stack of Go's, and a signal handler that the host installed without
 * SA_ONSTACK would run on a goroutine's stack, which is a few KiB. One service thread makes all calls of the core; they
 * are quick, and the host's thread waits for each on a semaphore.
 */
#define _GNU_SOURCE /* dladdr */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define CORE_NAME "libreceivewal-core.so.1"

static char library_path[PATH_MAX]; /* of libreceivewal.so.1 itself, absolute */
static _Atomic bool touched;        /* a call has needed the core */
static _Atomic bool forked;         /* and then this process was forked */
static _Atomic pid_t owner;         /* the process that touched is about */
static _Atomic bool ready;          /* core and the service thread can be used */
static pthread_mutex_t load_mutex = PTHREAD_MUTEX_INITIALIZER;
static rw_core core;

static void in_forked_child(void)
{
    if (atomic_load(&touched))
        atomic_store(&forked, true);
}

/* When the library is loaded: the host may chdir later, and fork before its first call. */
static void __attribute__((constructor)) on_load(void)
{
    Dl_info info;

    pthread_atfork(NULL, NULL, in_forked_child);
    if (dladdr(&core, &info) != 0 && info.dli_fname != NULL && info.dli_fname[0] != '\0')
    {
        if (info.dli_fname[0] == '/' && strlen(info.dli_fname) < sizeof(library_path))
            strcpy(library_path, info.dli_fname);
        else if (realpath(info.dli_fname, library_path) == NULL)
            library_path[0] = '\0';
    }
}

bool rw_forked(void)
{
    /* The process id too: a child made by a bare clone or vfork has run no atfork handler. */
    return atomic_load(&touched) && (atomic_load(&forked) || atomic_load(&owner) != getpid());
}

/* ------------------------------------------------------------------------------------- the service thread */

static pthread_mutex_t call_mutex = PTHREAD_MUTEX_INITIALIZER;
static sem_t call_due, call_done;
static void (*call_function)(void *);
static void *call_argument;

static void wait_for(sem_t *sem)
{
    while (sem_wait(sem) != 0 && errno == EINTR)
        ;
}

static void *serve(void *nothing)
{
    for (;;)
    {
        wait_for(&call_due);
        call_function(call_argument);
        sem_post(&call_done);
    }
    return nothing;
}

static void call(void (*function)(void *), void *argument)
{
    int cancel_state;

    /* Not cancellable: a thread that went away in here would take the mutex along. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    pthread_mutex_lock(&call_mutex);
    call_function = function;
    call_argument = argument;
    sem_post(&call_due);
    wait_for(&call_done);
    pthread_mutex_unlock(&call_mutex);
    pthread_setcancelstate(cancel_state, NULL);
}

/* --------------------------------------------------------------------------------------------- loading */

/*
 * A host that has closed its standard descriptors must not find one of ours in their place, and write its messages into
 * it, or dup2 over it. Go opens some that stay, so numbers 0 to 2 are taken meanwhile.
 */
static int hold_standard_descriptors(int held[3])
{
    int count = 0;

    while (count < 3)
    {
        int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

        if (fd > 2)
            close(fd);
        if (fd < 0 || fd > 2)
            break;
        held[count++] = fd;
    }
    return count;
}

static void release_standard_descriptors(const int held[3], int count)
{
    while (count > 0)
        close(held[--count]);
}

static bool is_fault(int signal)
{
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGFPE || signal == SIGILL || signal == SIGTRAP || signal == SIGSYS;
}

static void block_signals(sigset_t *before)
{
    sigset_t set;

    sigfillset(&set);
    for (int i = 1; i < NSIG; i++)
        if (is_fault(i))
            sigdelset(&set, i);
    pthread_sigmask(SIG_BLOCK, &set, before);
}

static void save_handlers(struct sigaction handlers[NSIG])
{
    memset(handlers, 0, NSIG * sizeof(handlers[0]));
    for (int i = 1; i < NSIG; i++)
        if (sigaction(i, NULL, &handlers[i]) != 0)
            handlers[i].sa_handler = SIG_ERR;
}

/*
 * Go takes signals when it starts (runtime/signal_unix.go, initsig and sigInstallGoHandler). It keeps SIGSEGV, SIGBUS and
 * SIGFPE, from which it makes panics, and passes on those that did not come from Go code. The others go back to the host:
 * SIGPIPE, since Go's threads have it blocked and get EPIPE; SIGURG, since the core is built without
 * asynchronous preemption; and SA_ONSTACK, which it adds to every handler that it finds, since none of them ever runs on a Go thread.
 */
static void restore_handlers(const struct sigaction before[NSIG])
{
    for (int i = 1; i < NSIG; i++)
    {
        struct sigaction now;
        bool taken;

        if (i == SIGSEGV || i == SIGBUS || i == SIGFPE || before[i].sa_handler == SIG_ERR || sigaction(i, NULL, &now) != 0)
            continue;
        taken = now.sa_handler != before[i].sa_handler;
        if ((taken && (i == SIGPIPE || i == SIGURG)) || (!taken && now.sa_flags == (before[i].sa_flags | SA_ONSTACK) && now.sa_flags != before[i].sa_flags))
            sigaction(i, &before[i], NULL);
    }
}

/* The file name of the core, in the folder of the library at path. */
static bool core_beside(const char *path, char core_path[PATH_MAX])
{
    const char *slash = strrchr(path, '/');
    int length;

    if (slash == NULL)
        return false;
    length = snprintf(core_path, PATH_MAX, "%.*s/" CORE_NAME, (int)(slash - path), path);
    return length > 0 && length < PATH_MAX;
}

static bool resolve(void *library)
{
    static const char *const names[] = { "open", "begin", "take", "cancel", "progress", "usable", "close", "reconnect", "lost" };
    void *functions[sizeof(names) / sizeof(names[0])];
    char name[64];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
    {
        snprintf(name, sizeof(name), "receivewal_core_%s", names[i]);
        functions[i] = dlsym(library, name);
        if (functions[i] == NULL)
            return false;
    }
    /* memcpy, since ISO C knows no conversion from void * to a function pointer. */
    memcpy(&core.open, &functions[0], sizeof(void *));
    memcpy(&core.begin, &functions[1], sizeof(void *));
    memcpy(&core.take, &functions[2], sizeof(void *));
    memcpy(&core.cancel, &functions[3], sizeof(void *));
    memcpy(&core.progress, &functions[4], sizeof(void *));
    memcpy(&core.usable, &functions[5], sizeof(void *));
    memcpy(&core.close, &functions[6], sizeof(void *));
    memcpy(&core.reconnect, &functions[7], sizeof(void *));
    memcpy(&core.lost, &functions[8], sizeof(void *));
    return true;
}

static const char *dl_error(void)
{
    const char *text = dlerror();

    return text == NULL ? "no reason given" : text;
}

/* Opens a core that fits, or returns NULL and the thread's error. */
static void *open_core(receivewal_status *status)
{
    char path[PATH_MAX], real[PATH_MAX], beside_real[PATH_MAX];
    void *library;
    void *symbol;

    if (!core_beside(library_path, path))
    {
        *status = rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "cannot tell which folder libreceivewal.so.1 lies in, to load " CORE_NAME " from it");
        return NULL;
    }
    /* The library may have been reached through a link in a folder where nobody put one to the core. */
    if (access(path, F_OK) != 0 && realpath(library_path, real) != NULL && core_beside(real, beside_real) && access(beside_real, F_OK) == 0)
        memcpy(path, beside_real, sizeof(path));

    dlerror();
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
    {
        *status = rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "cannot load %s: %s", path, dl_error());
        return NULL;
    }
    symbol = dlsym(library, "receivewal_core_version");
    if (symbol == NULL)
        *status = rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "%s is not libreceivewal's core: %s", path, dl_error());
    else
    {
        const char *version;

        memcpy(&core.version, &symbol, sizeof(symbol));
        version = core.version();
        if (version == NULL || strcmp(version, RW_CORE_HANDSHAKE) != 0)
            *status = rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "%s is version %s, but %s is version %s: install both from one build", path,
                                      version == NULL ? "(none)" : version, library_path, RW_CORE_HANDSHAKE);
        else if (!resolve(library))
            *status = rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "%s lacks a function: %s", path, dl_error());
        else
            return library;
    }
    dlclose(library);
    return NULL;
}

static receivewal_status start_service(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int error;

    sem_init(&call_due, 0, 0);
    sem_init(&call_done, 0, 0);
    error = pthread_attr_init(&attributes);
    if (error == 0)
    {
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        error = pthread_create(&thread, &attributes, serve, NULL);
        pthread_attr_destroy(&attributes);
    }
    if (error != 0)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_LIMIT, "cannot start a thread: %s", strerror(error));
    return RECEIVEWAL_OK;
}

/* Waits until the Go runtime has started, and has opened the descriptors that it keeps. */
static void warm_up(void *unused)
{
    uint64_t id = 0;
    char *text = NULL;

    (void)unused;
    if (core.open(-1, 0, -1, -1, &id, &text) == RECEIVEWAL_OK)
        core.close(id);
    free(text);
}

static receivewal_status load(void)
{
    struct sigaction handlers[NSIG];
    sigset_t mask;
    int cancel_state, held[3], count;
    receivewal_status status = RECEIVEWAL_OK;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    pthread_mutex_lock(&load_mutex);
    if (!atomic_load(&ready))
    {
        static void *library; /* a core that was loaded stays, should only the service thread have failed */

        block_signals(&mask);
        count = hold_standard_descriptors(held);
        if (library == NULL)
        {
            save_handlers(handlers);
            library = open_core(&status);
            restore_handlers(handlers);
        }
        if (library != NULL)
            status = start_service();
        if (status == RECEIVEWAL_OK)
        {
            call(warm_up, NULL);
            atomic_store(&ready, true);
        }
        release_standard_descriptors(held, count);
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
    }
    pthread_mutex_unlock(&load_mutex);
    pthread_setcancelstate(cancel_state, NULL);
    return status;
}

receivewal_status rw_core_need(void)
{
    pid_t none = 0;

    /* Before the mutex is taken: a child forked while another thread holds it must not wait for it. */
    atomic_compare_exchange_strong(&owner, &none, getpid());
    atomic_store(&touched, true);
    if (rw_forked())
        return RECEIVEWAL_ERR_FORKED;
    return atomic_load(&ready) ? RECEIVEWAL_OK : load();
}

/* --------------------------------------------------------------------------- the calls, as jobs of the service thread */

typedef struct job
{
    receivewal_status status;
    uint64_t id;
    int fd, event_fd, stop_fd;
    const receivewal_connection *connection;
    rw_core_answer answer;
    const char *reason;
    char **text;
    rw_core_request *request;
    rw_core_event **list;
    receivewal_progress *progress;
    int usable;
} job;

static void job_open(void *argument)
{
    job *j = argument;
    int held[3];
    int count = hold_standard_descriptors(held);

    j->status = core.open(j->fd, j->connection, j->event_fd, j->stop_fd, &j->id, j->text);
    release_standard_descriptors(held, count);
}

receivewal_status rw_core_open(int fd, const receivewal_connection *connection, int event_fd, int stop_fd, uint64_t *id, char **text)
{
    job j = { .fd = fd, .connection = connection, .event_fd = event_fd, .stop_fd = stop_fd, .text = text };

    call(job_open, &j);
    *id = j.id;
    return j.status;
}

static void job_begin(void *argument)
{
    job *j = argument;

    j->status = core.begin(j->id, j->request, j->text);
}

receivewal_status rw_core_begin(uint64_t id, rw_core_request *request, char **text)
{
    job j = { .id = id, .request = request, .text = text };

    call(job_begin, &j);
    return j.status;
}

static void job_take(void *argument)
{
    job *j = argument;

    j->status = core.take(j->id, j->list);
}

receivewal_status rw_core_take(uint64_t id, rw_core_event **list)
{
    job j = { .id = id, .list = list };

    call(job_take, &j);
    return j.status;
}

static void job_cancel(void *argument)
{
    job *j = argument;

    j->status = core.cancel(j->id);
}

receivewal_status rw_core_cancel(uint64_t id)
{
    job j = { .id = id };

    call(job_cancel, &j);
    return j.status;
}

static void job_reconnect(void *argument)
{
    job *j = argument;

    j->status = core.reconnect(j->id, j->answer, j->fd, j->connection, j->text);
}

receivewal_status rw_core_reconnect(uint64_t id, rw_core_answer answer, int fd, const receivewal_connection *connection, char **text)
{
    job j = { .id = id, .answer = answer, .fd = fd, .connection = connection, .text = text };

    call(job_reconnect, &j);
    return j.status;
}

static void job_lost(void *argument)
{
    job *j = argument;

    j->status = core.lost(j->id, j->reason);
}

receivewal_status rw_core_lost(uint64_t id, const char *reason)
{
    job j = { .id = id, .reason = reason };

    call(job_lost, &j);
    return j.status;
}

static void job_progress(void *argument)
{
    job *j = argument;

    j->status = core.progress(j->id, j->progress);
}

receivewal_status rw_core_progress(uint64_t id, receivewal_progress *progress)
{
    job j = { .id = id, .progress = progress };

    call(job_progress, &j);
    return j.status;
}

static void job_usable(void *argument)
{
    job *j = argument;

    j->usable = core.usable(j->id);
}

int rw_core_usable(uint64_t id)
{
    job j = { .id = id };

    call(job_usable, &j);
    return j.usable;
}

static void job_close(void *argument)
{
    job *j = argument;

    j->status = core.close(j->id);
}

receivewal_status rw_core_close(uint64_t id)
{
    job j = { .id = id };

    call(job_close, &j);
    return j.status;
}
