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
    if (!atomic_load(&touched))
        return;
    atomic_store(&forked, true);
    rw_close_copies();
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

/* One call of the core: which, its arguments, and what it answered. */
typedef struct job
{
    enum { OPEN, BEGIN, TAKE, CANCEL, RECONNECT, LOST, TAKEN, CONFIRM, PROGRESS, USABLE, CLOSE } what;
    uint64_t id;
    int fd, event_fd, stop_fd;
    const receivewal_connection *connection;
    rw_core_answer answer;
    const char *reason;
    receivewal_lsn lsn;
    uint64_t bytes;
    char **text;
    rw_core_request *request;
    rw_core_event **list;
    receivewal_progress *progress;
    receivewal_status status;
    int usable;
} job;

static pthread_mutex_t call_mutex = PTHREAD_MUTEX_INITIALIZER;
static sem_t call_due, call_done;
static job *current;

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

static void perform(job *j)
{
    const bool opens = j->what == OPEN || j->what == RECONNECT;
    int held[3];
    int count = opens ? hold_standard_descriptors(held) : 0;

    switch (j->what)
    {
        case OPEN: j->status = core.open(j->fd, j->connection, j->event_fd, j->stop_fd, &j->id, j->text); break;
        case BEGIN: j->status = core.begin(j->id, j->request, j->text); break;
        case TAKE: j->status = core.take(j->id, j->list); break;
        case CANCEL: j->status = core.cancel(j->id); break;
        case RECONNECT: j->status = core.reconnect(j->id, j->answer, j->fd, j->connection, j->text); break;
        case LOST: j->status = core.lost(j->id, j->reason); break;
        case TAKEN: j->status = core.taken(j->id, j->bytes); break;
        case CONFIRM: j->status = core.confirm(j->id, j->lsn, j->text); break;
        case PROGRESS: j->status = core.progress(j->id, j->progress); break;
        case USABLE: j->usable = core.usable(j->id); break;
        case CLOSE: j->status = core.close(j->id); break;
    }
    release_standard_descriptors(held, count);
}

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
        perform(current);
        sem_post(&call_done);
    }
    return nothing;
}

/* Has a job done. Not cancellable: a thread that went away in here would take the mutex along. */
static receivewal_status call(job *j)
{
    int cancel_state;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    pthread_mutex_lock(&call_mutex);
    current = j;
    sem_post(&call_due);
    wait_for(&call_done);
    pthread_mutex_unlock(&call_mutex);
    pthread_setcancelstate(cancel_state, NULL);
    return j->status;
}

receivewal_status rw_core_open(int fd, const receivewal_connection *connection, int event_fd, int stop_fd, uint64_t *id, char **text)
{
    job j = { .what = OPEN, .fd = fd, .connection = connection, .event_fd = event_fd, .stop_fd = stop_fd, .text = text };

    call(&j);
    *id = j.id;
    return j.status;
}

receivewal_status rw_core_begin(uint64_t id, rw_core_request *request, char **text)
{
    return call(&(job){ .what = BEGIN, .id = id, .request = request, .text = text });
}

receivewal_status rw_core_take(uint64_t id, rw_core_event **list)
{
    return call(&(job){ .what = TAKE, .id = id, .list = list });
}

receivewal_status rw_core_cancel(uint64_t id)
{
    return call(&(job){ .what = CANCEL, .id = id });
}

receivewal_status rw_core_reconnect(uint64_t id, rw_core_answer answer, int fd, const receivewal_connection *connection, char **text)
{
    return call(&(job){ .what = RECONNECT, .id = id, .answer = answer, .fd = fd, .connection = connection, .text = text });
}

receivewal_status rw_core_lost(uint64_t id, const char *reason)
{
    return call(&(job){ .what = LOST, .id = id, .reason = reason });
}

receivewal_status rw_core_taken(uint64_t id, uint64_t bytes)
{
    return call(&(job){ .what = TAKEN, .id = id, .bytes = bytes });
}

receivewal_status rw_core_confirm(uint64_t id, receivewal_lsn lsn, char **text)
{
    return call(&(job){ .what = CONFIRM, .id = id, .lsn = lsn, .text = text });
}

receivewal_status rw_core_progress(uint64_t id, receivewal_progress *progress)
{
    return call(&(job){ .what = PROGRESS, .id = id, .progress = progress });
}

int rw_core_usable(uint64_t id)
{
    job j = { .what = USABLE, .id = id };

    call(&j);
    return j.usable;
}

receivewal_status rw_core_close(uint64_t id)
{
    return call(&(job){ .what = CLOSE, .id = id });
}

/* --------------------------------------------------------------------------------------------- loading */

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
        bool taken, marked;

        if (i == SIGSEGV || i == SIGBUS || i == SIGFPE || before[i].sa_handler == SIG_ERR || sigaction(i, NULL, &now) != 0)
            continue;
        taken = (i == SIGPIPE || i == SIGURG) && now.sa_handler != before[i].sa_handler;
        marked = now.sa_handler == before[i].sa_handler && (now.sa_flags & ~before[i].sa_flags) == SA_ONSTACK;
        if (taken || marked)
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

/* Finds one of the core's functions; memcpy, since ISO C knows no conversion from void * to a function pointer. */
static bool resolve(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    memcpy(function, &symbol, sizeof(symbol));
    return symbol != NULL;
}

static bool resolve_all(void *library)
{
    return resolve(library, "receivewal_core_open", &core.open) && resolve(library, "receivewal_core_begin", &core.begin) &&
           resolve(library, "receivewal_core_take", &core.take) && resolve(library, "receivewal_core_cancel", &core.cancel) &&
           resolve(library, "receivewal_core_reconnect", &core.reconnect) && resolve(library, "receivewal_core_lost", &core.lost) &&
           resolve(library, "receivewal_core_taken", &core.taken) && resolve(library, "receivewal_core_confirm", &core.confirm) &&
           resolve(library, "receivewal_core_progress", &core.progress) && resolve(library, "receivewal_core_usable", &core.usable) &&
           resolve(library, "receivewal_core_close", &core.close) && resolve(library, "receivewal_core_share", &core.share);
}

static const char *dl_error(void)
{
    const char *text = dlerror();

    return text == NULL ? "no reason given" : text;
}

/* Where the core should lie; false if that is not known. */
static bool find_core(char path[PATH_MAX])
{
    char real[PATH_MAX], beside_real[PATH_MAX];

    if (!core_beside(library_path, path))
        return false;
    /* The library may have been reached through a link in a folder where nobody put one to the core. */
    if (access(path, F_OK) != 0 && realpath(library_path, real) != NULL && core_beside(real, beside_real) &&
        access(beside_real, F_OK) == 0)
        memcpy(path, beside_real, sizeof(beside_real));
    return true;
}

/* Asks a library that was opened whether it is the core, and of the same build. */
static receivewal_status check_core(void *library, const char *path)
{
    const char *version;

    if (!resolve(library, "receivewal_core_version", &core.version))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "%s is not libreceivewal's core: %s", path, dl_error());
    version = core.version();
    if (version == NULL || strcmp(version, RW_CORE_HANDSHAKE) != 0)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "%s is version %s, but %s is version %s: install both from one build",
                               path, version == NULL ? "(none)" : version, library_path, RW_CORE_HANDSHAKE);
    if (!resolve_all(library))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "%s lacks a function: %s", path, dl_error());
    core.share(rw_descriptors, RW_DESCRIPTOR_WORDS);
    return RECEIVEWAL_OK;
}

/* Opens a core that fits; else *library is NULL. */
static receivewal_status open_core(void **library)
{
    char path[PATH_MAX];
    receivewal_status status;

    if (!find_core(path))
        return rw_thread_error(NULL, RECEIVEWAL_ERR_CORE,
                               "cannot tell which folder libreceivewal.so.1 lies in, to load " CORE_NAME " from it");
    dlerror();
    *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (*library == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_CORE, "cannot load %s: %s", path, dl_error());
    status = check_core(*library, path);
    if (status != RECEIVEWAL_OK)
    {
        dlclose(*library);
        *library = NULL;
    }
    return status;
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
static void warm_up(void)
{
    uint64_t id;
    char *text = NULL;

    if (rw_core_open(-1, NULL, -1, -1, &id, &text) == RECEIVEWAL_OK)
        rw_core_close(id);
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
            status = open_core(&library);
            restore_handlers(handlers);
        }
        if (library != NULL)
            status = start_service();
        if (status == RECEIVEWAL_OK)
        {
            warm_up();
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
