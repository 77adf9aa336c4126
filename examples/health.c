/*
 * health.c: the program's state in files: as JSON, and in Prometheus' text format
 * (https://prometheus.io/docs/instrumenting/exposition_formats/), which node_exporter's textfile collector takes.
 *
 * Each is written beside its place and renamed into it, so a reader never sees half of one. They are not fsynced: after a crash of
 * the machine nobody asks for them. receivewal_get_progress may be called by any thread, so the receive doesn't notice.
 *
 * BSD-3-Clause. See LICENSE.
 */
#define _DEFAULT_SOURCE 1

#include "health.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The state between receives, and after the last. */
#define CONNECTING "connecting"
#define ENDED "ended"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ending;
static pthread_t writer;
static bool ended;

/* With mutex. */
static health_files files;
static receivewal *current;                 /* the receive in progress */
static receivewal_progress last = RECEIVEWAL_PROGRESS_INIT; /* of it, or of the one before */
static uint64_t bytes, stored_bytes, segments, reconnects;  /* of the receives before it */
static unsigned receives;
static char last_error[2048];
static int result = 1;

/* What is written: a copy, so that nobody waits for a slow file system. */
typedef struct snapshot
{
    receivewal_progress p;
    const char *state;
    uint64_t bytes, stored_bytes, segments, reconnects;
    char error[sizeof(last_error)];
    bool over;
    int exit_code;
    struct timespec now;
} snapshot;

static void take(snapshot *s)
{
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

    if (current != NULL && receivewal_get_progress(current, &progress) == RECEIVEWAL_OK)
        last = progress;
    s->p = last;
    s->state = current != NULL ? receivewal_state_name(last.state) : ended ? ENDED : CONNECTING;
    s->bytes = bytes + (current != NULL ? last.bytes : 0);
    s->stored_bytes = stored_bytes + (current != NULL ? last.stored_bytes : 0);
    s->segments = segments + (current != NULL ? last.segments : 0);
    s->reconnects = reconnects + (current != NULL ? last.reconnects : 0);
    if (current == NULL) /* how things went is no more how they go */
    {
        s->p.rate = 0;
        s->p.catch_up_time = s->p.lag == 0 ? 0 : -1;
    }
    memcpy(s->error, last_error, sizeof(last_error));
    s->over = ended;
    s->exit_code = result;
    clock_gettime(CLOCK_REALTIME, &s->now);
}

/* ------------------------------------------------------------------------------------------------------ JSON */

/* How many bytes the character at the beginning of a text has in UTF-8 (RFC 3629); 0: it is none. */
static int utf8_length(const unsigned char *c)
{
    static const struct { unsigned char min, max, next_min, next_max; int length; } forms[] = {
        { 0x01, 0x7f, 0, 0, 1 },       { 0xc2, 0xdf, 0x80, 0xbf, 2 }, { 0xe0, 0xe0, 0xa0, 0xbf, 3 },
        { 0xe1, 0xec, 0x80, 0xbf, 3 }, { 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
        { 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 }, { 0xf4, 0xf4, 0x80, 0x8f, 4 }
    };

    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++)
    {
        if (c[0] < forms[i].min || c[0] > forms[i].max)
            continue;
        if (forms[i].length > 1 && (c[1] < forms[i].next_min || c[1] > forms[i].next_max))
            return 0;
        for (int n = 2; n < forms[i].length; n++)
            if (c[n] < 0x80 || c[n] > 0xbf)
                return 0;
        return forms[i].length;
    }
    return 0;
}

/* Writes a text; what is not UTF-8 becomes U+FFFD, and escape writes what needs it and returns true. */
static void put_text(FILE *out, const char *text, bool (*escape)(FILE *out, unsigned char c))
{
    const unsigned char *c = (const unsigned char *) text;

    while (*c != '\0')
    {
        int length = utf8_length(c);

        if (length == 0)
            fputs("\xef\xbf\xbd", out);
        else if (length > 1 || !escape(out, *c))
            fwrite(c, 1, (size_t) length, out);
        c += length == 0 ? 1 : length;
    }
}

static bool escape_json(FILE *out, unsigned char c)
{
    if (c == '"' || c == '\\')
        fprintf(out, "\\%c", c);
    else if (c < ' ')
        fprintf(out, "\\u%04x", c);
    else
        return false;
    return true;
}

void json_string(FILE *out, const char *text)
{
    putc('"', out);
    put_text(out, text, escape_json);
    putc('"', out);
}

static void json_text(FILE *out, const char *name, const char *text)
{
    fprintf(out, "  \"%s\": ", name);
    if (text == NULL || text[0] == '\0')
        fputs("null", out);
    else
        json_string(out, text);
    fputs(",\n", out);
}

static void json_lsn(FILE *out, const char *name, receivewal_lsn lsn)
{
    char text[RECEIVEWAL_LSN_LEN];

    json_text(out, name, lsn == 0 ? NULL : receivewal_lsn_format(lsn, text));
}

/* Microseconds since 1970, as ISO 8601 has it; 0: null. */
static void json_time(FILE *out, const char *name, int64_t time)
{
    char text[64] = "";
    time_t seconds = (time_t) (time / 1000000);
    struct tm tm;

    if (time != 0 && gmtime_r(&seconds, &tm) != NULL)
    {
        size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);

        snprintf(text + n, sizeof(text) - n, ".%06dZ", (int) (time % 1000000));
    }
    json_text(out, name, text);
}

static void json_number(FILE *out, const char *name, uint64_t number)
{
    fprintf(out, "  \"%s\": %" PRIu64 ",\n", name, number);
}

static void write_status(FILE *out, const snapshot *s)
{
    fputs("{\n", out);
    json_text(out, "version", receivewal_version_string());
    json_number(out, "pid", (uint64_t) getpid());
    json_time(out, "updated", (int64_t) s->now.tv_sec * 1000000 + s->now.tv_nsec / 1000);
    json_text(out, "directory", files.directory);
    json_text(out, "slot", files.slot);
    json_text(out, "state", s->state);
    json_number(out, "timeline", s->p.timeline);
    json_text(out, "segment", s->p.segment);
    json_lsn(out, "start_lsn", s->p.start_lsn);
    json_lsn(out, "written_lsn", s->p.written_lsn);
    json_lsn(out, "flushed_lsn", s->p.flushed_lsn);
    json_lsn(out, "reported_lsn", s->p.reported_lsn);
    json_lsn(out, "server_lsn", s->p.server_lsn);
    json_number(out, "lag_bytes", s->p.lag);
    json_number(out, "lag_ms", (uint64_t) s->p.lag_time);
    json_number(out, "bytes_per_second", s->p.rate);
    if (s->p.catch_up_time < 0)
        fputs("  \"catch_up_ms\": null,\n", out);
    else
        json_number(out, "catch_up_ms", (uint64_t) s->p.catch_up_time);
    json_time(out, "server_time", s->p.server_time);
    json_time(out, "received_time", s->p.received_time);
    json_number(out, "flush_us", (uint64_t) s->p.flush_time);
    json_number(out, "flush_max_us", (uint64_t) s->p.flush_time_max);
    json_number(out, "bytes", s->bytes);
    json_number(out, "stored_bytes", s->stored_bytes);
    json_number(out, "segments", s->segments);
    json_number(out, "reconnects", s->reconnects);
    json_number(out, "mirrors", s->p.mirrors);
    json_number(out, "mirrors_failed", s->p.mirrors_failed);
    json_text(out, "last_error", s->error);
    if (s->over)
        fprintf(out, "  \"exit_code\": %d\n}\n", s->exit_code);
    else
        fputs("  \"exit_code\": null\n}\n", out);
}

/* --------------------------------------------------------------------------------------------------- metrics */

static bool escape_label(FILE *out, unsigned char c)
{
    if (c == '"' || c == '\\')
        fprintf(out, "\\%c", c);
    else if (c == '\n')
        fputs("\\n", out);
    else
        return false;
    return true;
}

/* The labels that all metrics have; the closing brace is the caller's. */
static void labels(FILE *out, const char *name)
{
    fprintf(out, "receivewal_%s{directory=\"", name);
    put_text(out, files.directory, escape_label);
    fputs("\",slot=\"", out);
    put_text(out, files.slot != NULL ? files.slot : "", escape_label);
    putc('"', out);
}

static void describe(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP receivewal_%s %s\n# TYPE receivewal_%s %s\n", name, help, name, type);
}

static void counter(FILE *out, const char *name, const char *help, uint64_t value)
{
    describe(out, name, "counter", help);
    labels(out, name);
    fprintf(out, "} %" PRIu64 "\n", value);
}

static void gauge(FILE *out, const char *name, const char *help, uint64_t value)
{
    describe(out, name, "gauge", help);
    labels(out, name);
    fprintf(out, "} %" PRIu64 "\n", value);
}

/* A number of seconds, from one of millionths. */
static void seconds(FILE *out, const char *name, const char *help, int64_t millionths)
{
    describe(out, name, "gauge", help);
    labels(out, name);
    fprintf(out, "} %" PRId64 ".%06d\n", millionths / 1000000, (int) (millionths % 1000000));
}

static void write_metrics(FILE *out, const snapshot *s)
{
    describe(out, "info", "gauge", "The version of the program.");
    labels(out, "info");
    fprintf(out, ",version=\"%s\"} 1\n", receivewal_version_string());
    describe(out, "state", "gauge", "What the program does: 1 for that, 0 for all others.");
    for (int i = -2; i <= RECEIVEWAL_STATE_DISK_FULL; i++)
    {
        const char *name = i == -2 ? CONNECTING : i == -1 ? ENDED : receivewal_state_name((receivewal_state) i);

        labels(out, "state");
        fprintf(out, ",state=\"%s\"} %d\n", name, strcmp(name, s->state) == 0);
    }
    gauge(out, "timeline", "The timeline of the WAL that is received.", s->p.timeline);
    gauge(out, "written_lsn_bytes", "End of what has been written, as a position in the WAL.", s->p.written_lsn);
    gauge(out, "flushed_lsn_bytes", "End of what is durable.", s->p.flushed_lsn);
    gauge(out, "reported_lsn_bytes", "The flushed position that the server was told last.", s->p.reported_lsn);
    gauge(out, "server_lsn_bytes", "The server's end of WAL, as it said last.", s->p.server_lsn);
    gauge(out, "lag_bytes", "WAL that the server has, as it said last, and is not written yet.", s->p.lag);
    seconds(out, "lag_seconds", "Time since what is written was all that the server had; 0: it is.", s->p.lag_time * 1000);
    gauge(out, "bytes_per_second", "WAL received per second, over the last seconds.", s->p.rate);
    if (s->p.catch_up_time >= 0)
        seconds(out, "catch_up_seconds", "Time until there is no lag, as things go.", s->p.catch_up_time * 1000);
    else
    {
        describe(out, "catch_up_seconds", "gauge", "Time until there is no lag, as things go.");
        labels(out, "catch_up_seconds");
        fputs("} +Inf\n", out);
    }
    seconds(out, "last_message_timestamp_seconds", "When the server was last heard of.", s->p.received_time);
    seconds(out, "last_flush_seconds", "How long the last flush took.", s->p.flush_time);
    seconds(out, "max_flush_seconds", "How long the slowest flush of this connection took.", s->p.flush_time_max);
    counter(out, "received_bytes_total", "WAL received.", s->bytes);
    counter(out, "stored_bytes_total", "Bytes written to files.", s->stored_bytes);
    counter(out, "segments_total", "Segments completed.", s->segments);
    counter(out, "reconnects_total", "Connections after the first.", s->reconnects);
    gauge(out, "mirrors", "Mirror directories that are written in step.", s->p.mirrors);
    gauge(out, "mirrors_failed", "Mirror directories that are not, at the moment.", s->p.mirrors_failed);
    seconds(out, "updated_timestamp_seconds", "When this file was written.", (int64_t) s->now.tv_sec * 1000000 + s->now.tv_nsec / 1000);
}

/* ----------------------------------------------------------------------------------------------------- files */

/* Replaces a file. Returns 0, or an errno. */
static int replace(const char *path, void (*content)(FILE *, const snapshot *), const snapshot *s)
{
    char temporary[PATH_MAX];
    int fd, problem;
    FILE *out;

    if (snprintf(temporary, sizeof(temporary), "%s.tmp", path) >= (int) sizeof(temporary))
        return ENAMETOOLONG;
    /* What an earlier run left there may be anything, a link too. */
    if (unlink(temporary) != 0 && errno != ENOENT)
        return errno;
    fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno;
    out = fdopen(fd, "w");
    if (out == NULL)
    {
        problem = errno;
        close(fd);
        unlink(temporary);
        return problem;
    }
    errno = 0;
    content(out, s);
    problem = ferror(out) ? (errno != 0 ? errno : EIO) : 0;
    if (fclose(out) != 0 && problem == 0)
        problem = errno;
    if (problem == 0 && rename(temporary, path) != 0)
        problem = errno;
    if (problem != 0)
        unlink(temporary);
    return problem;
}

static void update(const char *path, void (*content)(FILE *, const snapshot *), const snapshot *s, bool *warned)
{
    int problem = path == NULL ? 0 : replace(path, content, s);

    if (problem != 0 && !*warned)
        files.warn(path, strerror(problem));
    *warned = problem != 0;
}

static void write_files(const snapshot *s)
{
    static bool status_warned, metrics_warned;

    update(files.status, write_status, s, &status_warned);
    update(files.metrics, write_metrics, s, &metrics_warned);
}

static void *write_each_second(void *nothing)
{
    struct timespec next;
    static snapshot s;

    clock_gettime(CLOCK_MONOTONIC, &next);
    pthread_mutex_lock(&mutex);
    while (!ended)
    {
        take(&s);
        pthread_mutex_unlock(&mutex);
        write_files(&s);
        pthread_mutex_lock(&mutex);
        next.tv_sec++;
        while (!ended && pthread_cond_timedwait(&ending, &mutex, &next) != ETIMEDOUT)
            continue;
    }
    pthread_mutex_unlock(&mutex);
    return nothing;
}

/* The program exits, on whatever way. */
static void end(void)
{
    static snapshot s;

    pthread_mutex_lock(&mutex);
    ended = true;
    pthread_cond_signal(&ending);
    pthread_mutex_unlock(&mutex);
    pthread_join(writer, NULL);
    health_receives(NULL);
    take(&s);
    write_files(&s);
}

int health_start(const health_files *wanted)
{
    pthread_condattr_t monotonic;
    sigset_t all, before;
    int problem;

    files = *wanted;
    if (files.status == NULL && files.metrics == NULL)
        return 0;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&ending, &monotonic);
    /* Signals are the main thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    problem = pthread_create(&writer, NULL, write_each_second, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (problem == 0)
        atexit(end);
    return problem;
}

void health_receives(receivewal *rw)
{
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

    pthread_mutex_lock(&mutex);
    if (rw == NULL && current != NULL)
    {
        if (receivewal_get_progress(current, &progress) == RECEIVEWAL_OK)
            last = progress;
        bytes += last.bytes;
        stored_bytes += last.stored_bytes;
        segments += last.segments;
        reconnects += last.reconnects;
    }
    else if (rw != NULL && receives++ > 0)
        reconnects++;
    current = rw;
    pthread_mutex_unlock(&mutex);
}

void health_error(const char *text)
{
    pthread_mutex_lock(&mutex);
    snprintf(last_error, sizeof(last_error), "%s", text);
    pthread_mutex_unlock(&mutex);
}

void health_result(int exit_code)
{
    pthread_mutex_lock(&mutex);
    result = exit_code;
    pthread_mutex_unlock(&mutex);
}
