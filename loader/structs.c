/*
 * structs.c: the structs of the public header, when the program was compiled with an older or a newer one.
 *
 * A struct begins with its size as the program knows it. What ours has and theirs lacks keeps the INIT macro's value;
 * what theirs has and ours lacks must be zero, since a feature that we don't know can't be granted. A size that
 * ends inside a field was never any version's: it is garbage, and refused before it does harm.
 */
#define _POSIX_C_SOURCE 200809L
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

typedef struct field
{
    const char *name;
    size_t begin;
    size_t end;
} field;

struct rw_layout
{
    const char *name;
    const void *init;
    size_t size;
    size_t required; /* the least size: the first version's first field that nothing works without */
    size_t count;
    const field *fields;
};

#define FIELD(type, member) { #member, offsetof(type, member), offsetof(type, member) + sizeof(((type *)NULL)->member) }
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* The first field is the required one. last guards against a field that was added to the header and forgotten here: it must end
 * the struct, padding apart. */
#define LAYOUT(name, type, INIT, last)                                                                                 \
    _Static_assert(sizeof(type) - (offsetof(type, last) + sizeof(((type *)NULL)->last)) < _Alignof(type),              \
                   "fields missing after " #last);                                                                     \
    static const type name##_init = INIT;                                                                              \
    const rw_layout rw_layout_##name = { #type, &name##_init, sizeof(type), name##_fields[0].end,                      \
                                         COUNT(name##_fields), name##_fields }

static const field connection_fields[] = {
    FIELD(receivewal_connection, fd),
    FIELD(receivewal_connection, server_version),
    FIELD(receivewal_connection, io),
    FIELD(receivewal_connection, read_ahead),
    FIELD(receivewal_connection, read_ahead_length),
    FIELD(receivewal_connection, streaming),
    FIELD(receivewal_connection, stream_timeline),
    FIELD(receivewal_connection, stream_lsn),
    FIELD(receivewal_connection, system_identifier),
    FIELD(receivewal_connection, segment_size),
};
LAYOUT(connection, receivewal_connection, RECEIVEWAL_CONNECTION_INIT, segment_size);

static const field io_fields[] = {
    FIELD(receivewal_io, ctx),
    FIELD(receivewal_io, read),
    FIELD(receivewal_io, write),
    FIELD(receivewal_io, errmsg),
};
LAYOUT(io, receivewal_io, RECEIVEWAL_IO_INIT, errmsg);

static const field options_fields[] = {
    FIELD(receivewal_options, directory),
    FIELD(receivewal_options, slot),
    FIELD(receivewal_options, start_lsn),
    FIELD(receivewal_options, start_timeline),
    FIELD(receivewal_options, end_lsn),
    FIELD(receivewal_options, status_interval),
    FIELD(receivewal_options, progress_interval),
    FIELD(receivewal_options, synchronous),
    FIELD(receivewal_options, no_sync),
    FIELD(receivewal_options, file_mode),
    FIELD(receivewal_options, receive_timeout),
    FIELD(receivewal_options, flush_interval),
    FIELD(receivewal_options, repair),
    FIELD(receivewal_options, on_disk_full),
    FIELD(receivewal_options, check_pages),
    FIELD(receivewal_options, events.ctx),
    FIELD(receivewal_options, events.log),
    FIELD(receivewal_options, events.segment_opened),
    FIELD(receivewal_options, events.segment_completed),
    FIELD(receivewal_options, events.timeline_switched),
    FIELD(receivewal_options, events.progress),
    FIELD(receivewal_options, events.reconnect),
    FIELD(receivewal_options, events.problem),
    FIELD(receivewal_options, events.disk_full),
    FIELD(receivewal_options, events.mirror),
    FIELD(receivewal_options, events.data),
    FIELD(receivewal_options, events.reserved),
    FIELD(receivewal_options, compression),
    FIELD(receivewal_options, compression_level),
    FIELD(receivewal_options, compression_workers),
    FIELD(receivewal_options, suffixes),
    FIELD(receivewal_options, suffix_count),
    FIELD(receivewal_options, mirrors),
    FIELD(receivewal_options, mirror_count),
    FIELD(receivewal_options, mirror_required),
    FIELD(receivewal_options, confirm),
    FIELD(receivewal_options, slot_wait),
};
LAYOUT(options, receivewal_options, RECEIVEWAL_OPTIONS_INIT, slot_wait);

static const field progress_fields[] = {
    FIELD(receivewal_progress, state),
    FIELD(receivewal_progress, timeline),
    FIELD(receivewal_progress, start_lsn),
    FIELD(receivewal_progress, written_lsn),
    FIELD(receivewal_progress, flushed_lsn),
    FIELD(receivewal_progress, server_lsn),
    FIELD(receivewal_progress, bytes),
    FIELD(receivewal_progress, segments),
    FIELD(receivewal_progress, reconnects),
    FIELD(receivewal_progress, server_time),
    FIELD(receivewal_progress, received_time),
    FIELD(receivewal_progress, segment),
    FIELD(receivewal_progress, reported_lsn),
    FIELD(receivewal_progress, confirmed_lsn),
    FIELD(receivewal_progress, stored_bytes),
    FIELD(receivewal_progress, lag),
    FIELD(receivewal_progress, lag_time),
    FIELD(receivewal_progress, rate),
    FIELD(receivewal_progress, catch_up_time),
    FIELD(receivewal_progress, flush_time),
    FIELD(receivewal_progress, flush_time_max),
    FIELD(receivewal_progress, mirrors),
    FIELD(receivewal_progress, mirrors_failed),
};
LAYOUT(progress, receivewal_progress, RECEIVEWAL_PROGRESS_INIT, mirrors_failed);

static const field system_fields[] = {
    FIELD(receivewal_system, system_identifier),
    FIELD(receivewal_system, timeline),
    FIELD(receivewal_system, segment_size),
    FIELD(receivewal_system, lsn),
    FIELD(receivewal_system, data_directory_mode),
};
LAYOUT(system, receivewal_system, RECEIVEWAL_SYSTEM_INIT, data_directory_mode);

static const field slot_fields[] = {
    FIELD(receivewal_slot, restart_lsn),
    FIELD(receivewal_slot, restart_timeline),
};
LAYOUT(slot, receivewal_slot, RECEIVEWAL_SLOT_INIT, restart_timeline);

static const field start_point_fields[] = {
    FIELD(receivewal_start_point, lsn),
    FIELD(receivewal_start_point, timeline),
    FIELD(receivewal_start_point, segment_size),
    FIELD(receivewal_start_point, segment),
};
LAYOUT(start_point, receivewal_start_point, RECEIVEWAL_START_POINT_INIT, segment);

static const field check_options_fields[] = {
    FIELD(receivewal_check_options, segment_size),
    FIELD(receivewal_check_options, decode),
    FIELD(receivewal_check_options, ctx),
    FIELD(receivewal_check_options, problem),
    FIELD(receivewal_check_options, suffixes),
    FIELD(receivewal_check_options, suffix_count),
};
LAYOUT(check_options, receivewal_check_options, RECEIVEWAL_CHECK_OPTIONS_INIT, suffix_count);

static const field check_fields[] = {
    FIELD(receivewal_check, segments),
    FIELD(receivewal_check, problems),
    FIELD(receivewal_check, leftovers),
    FIELD(receivewal_check, system_identifier),
    FIELD(receivewal_check, segment_size),
    FIELD(receivewal_check, timeline),
    FIELD(receivewal_check, oldest_lsn),
    FIELD(receivewal_check, lsn),
    FIELD(receivewal_check, segment_size_assumed),
};
LAYOUT(check, receivewal_check, RECEIVEWAL_CHECK_INIT, segment_size_assumed);

/* No struct of ours will ever be this large; a size that is was not set. */
#define ABSURD ((size_t)64 * 1024)

static size_t size_of(const void *theirs)
{
    size_t size;

    memcpy(&size, theirs, sizeof(size));
    return size;
}

bool rw_struct_check(const rw_layout *layout, const void *theirs, char problem[RW_PROBLEM_MAX])
{
    size_t size = size_of(theirs);
    const unsigned char *bytes = theirs;

    if (size == 0)
    {
        snprintf(problem, RW_PROBLEM_MAX, "%s.size is 0: initialise the struct with its INIT macro", layout->name);
        return false;
    }
    if (size < layout->required || size > ABSURD)
    {
        snprintf(problem, RW_PROBLEM_MAX, "%s.size is %zu: not the size of any version of this struct, which has %zu bytes here",
                 layout->name, size, layout->size);
        return false;
    }
    for (size_t i = 0; i < layout->count; i++)
    {
        const field *f = &layout->fields[i];

        if (f->begin < size && size < f->end)
        {
            snprintf(problem, RW_PROBLEM_MAX,
                     "%s.size is %zu, which ends inside the field %s: not the size of any version of this struct",
                     layout->name, size, f->name);
            return false;
        }
    }
    for (size_t i = layout->size; i < size; i++)
        if (bytes[i] != 0)
        {
            snprintf(problem, RW_PROBLEM_MAX,
                     "%s has %zu bytes, and byte %zu is set: libreceivewal " RECEIVEWAL_VERSION " knows only the first %zu",
                     layout->name, size, i, layout->size);
            return false;
        }
    return true;
}

static size_t shared_size(const rw_layout *layout, const void *theirs)
{
    size_t size = size_of(theirs);

    return size < layout->size ? size : layout->size;
}

void rw_struct_in(const rw_layout *layout, const void *theirs, void *ours)
{
    memcpy(ours, layout->init, layout->size);
    memcpy(ours, theirs, shared_size(layout, theirs));
    memcpy(ours, &layout->size, sizeof(layout->size));
}

void rw_struct_out(const rw_layout *layout, const void *ours, void *theirs)
{
    const size_t skip = sizeof(size_t); /* the size is the caller's */

    memcpy((char *)theirs + skip, (const char *)ours + skip, shared_size(layout, theirs) - skip);
}

/* ReplicationSlotValidateName in slot.c. */
bool rw_slot_name_check(const char *what, const char *name, char problem[RW_PROBLEM_MAX])
{
    size_t length;

    if (name == NULL)
    {
        snprintf(problem, RW_PROBLEM_MAX, "%s is NULL", what);
        return false;
    }
    length = strnlen(name, 64);
    if (length < 1 || length > 63 || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != length)
    {
        snprintf(problem, RW_PROBLEM_MAX, "%s is \"%.64s\": a slot's name has 1 to 63 of a-z, 0-9 and _", what, name);
        return false;
    }
    return true;
}

bool rw_directory_check(const char *what, const char *directory, char problem[RW_PROBLEM_MAX])
{
    if (directory == NULL || directory[0] == '\0')
    {
        snprintf(problem, RW_PROBLEM_MAX, "%s is %s", what, directory == NULL ? "NULL" : "empty");
        return false;
    }
    if (strnlen(directory, PATH_MAX) >= PATH_MAX)
    {
        snprintf(problem, RW_PROBLEM_MAX, "%s is longer than %d bytes", what, PATH_MAX - 1);
        return false;
    }
    return true;
}

bool rw_segment_size_valid(uint32_t segment_size)
{
    return segment_size >= 1u << 20 && segment_size <= 1u << 30 && (segment_size & (segment_size - 1)) == 0;
}

static const int highest_level[] = { [RECEIVEWAL_COMPRESSION_NONE] = 0,
                                     [RECEIVEWAL_COMPRESSION_GZIP] = 9,
                                     [RECEIVEWAL_COMPRESSION_LZ4] = 12,
                                     [RECEIVEWAL_COMPRESSION_ZSTD] = 19 };

const char *rw_suffixes_complaint(const char *const *suffixes, size_t count)
{
    if (count > 64)
        return "suffix_count is more than 64";
    if (count > 0 && suffixes == NULL)
        return "suffixes is NULL";
    for (size_t i = 0; i < count; i++)
    {
        size_t length = suffixes[i] == NULL ? 0 : strnlen(suffixes[i], 32);

        if (length < 2 || length > 31 || suffixes[i][0] != '.' || memchr(suffixes[i], '/', length) != NULL ||
            (length >= 8 && strcmp(suffixes[i] + length - 8, ".partial") == 0))
            return "suffixes has one that is NULL, does not begin with a dot, has a slash, ends in \".partial\", or is longer than 31 bytes";
    }
    return NULL;
}

bool rw_options_check(const receivewal_options *options, char problem[RW_PROBLEM_MAX])
{
    const char *complaint = NULL;

    if (!rw_directory_check("receivewal_options.directory", options->directory, problem))
        return false;
    if (options->slot != NULL && !rw_slot_name_check("receivewal_options.slot", options->slot, problem))
        return false;
    if (options->start_timeline != 0 && options->start_lsn == 0)
        complaint = "start_timeline is set without start_lsn";
    else if (options->status_interval < 0)
        complaint = "status_interval is negative";
    else if (options->progress_interval < 0)
        complaint = "progress_interval is negative";
    else if (options->synchronous && options->no_sync)
        complaint = "synchronous and no_sync are both set";
    else if ((options->file_mode & ~(uint32_t)0777) != 0)
        complaint = "file_mode has bits outside 0777";
    else if (options->file_mode != 0 && (options->file_mode & 0600) != 0600)
        complaint = "file_mode does not let the owner read and write";
    else if (options->flush_interval < 0)
        complaint = "flush_interval is negative";
    else if ((int)options->repair < RECEIVEWAL_REPAIR || (int)options->repair > RECEIVEWAL_REPAIR_OFF)
        complaint = "repair is none of RECEIVEWAL_REPAIR*";
    else if ((int)options->on_disk_full < RECEIVEWAL_DISK_FULL_FAIL || (int)options->on_disk_full > RECEIVEWAL_DISK_FULL_WAIT)
        complaint = "on_disk_full is none of RECEIVEWAL_DISK_FULL_*";
    else if ((int)options->compression < RECEIVEWAL_COMPRESSION_NONE || (int)options->compression > RECEIVEWAL_COMPRESSION_ZSTD)
        complaint = "compression is none of RECEIVEWAL_COMPRESSION_*";
    else if (options->compression_level < 0 || options->compression_level > highest_level[options->compression])
        complaint = "compression_level is not one of the compression's";
    else if (options->compression_workers < 0 || options->compression_workers > 1024)
        complaint = "compression_workers is not from 0 to 1024";
    else if (options->mirror_count > RW_MIRRORS_MAX)
        complaint = "mirror_count is more than 16";
    else if (options->mirror_count > 0 && options->mirrors == NULL)
        complaint = "mirrors is NULL";
    else
        complaint = rw_suffixes_complaint(options->suffixes, options->suffix_count);
    for (size_t i = 0; complaint == NULL && i < options->mirror_count; i++)
        if (!rw_directory_check("a directory of receivewal_options.mirrors", options->mirrors[i], problem))
            return false;
    for (size_t i = 0; complaint == NULL && i < COUNT(options->events.reserved); i++)
        if (options->events.reserved[i] != NULL)
            complaint = "events.reserved is not NULL: an event that this version of libreceivewal does not know";
    if (complaint != NULL)
        snprintf(problem, RW_PROBLEM_MAX, "receivewal_options.%s", complaint);
    return complaint == NULL;
}
