/*
 * helpers.c: functions that need neither a handle nor the core, and work in every process.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <string.h>

#include "internal.h"

int receivewal_version(void)
{
    return RECEIVEWAL_VERSION_NUM;
}

const char *receivewal_version_string(void)
{
    return RECEIVEWAL_VERSION;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

/* Reads 1 to 8 digits; returns where they end, or NULL. Not strtoul: that takes signs, spaces, 0x and the locale's word. */
static const char *hex_number(const char *text, uint32_t *number)
{
    int digits = 0;

    for (*number = 0; hex_digit(*text) >= 0; text++)
    {
        if (++digits > 8)
            return NULL;
        *number = *number << 4 | (uint32_t)hex_digit(*text);
    }
    return digits > 0 ? text : NULL;
}

receivewal_status receivewal_lsn_parse(const char *text, receivewal_lsn *lsn)
{
    uint32_t high, low;
    const char *end;

    if (text == NULL || lsn == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "receivewal_lsn_parse: %s is NULL", text == NULL ? "text" : "lsn");
    end = hex_number(text, &high);
    if (end == NULL || *end != '/' || (end = hex_number(end + 1, &low)) == NULL || *end != '\0')
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "\"%.40s\" is not an LSN such as 16/B374D848", text);
    *lsn = (receivewal_lsn)high << 32 | low;
    return RECEIVEWAL_OK;
}

char *receivewal_lsn_format(receivewal_lsn lsn, char buffer[RECEIVEWAL_LSN_LEN])
{
    if (buffer != NULL)
        snprintf(buffer, RECEIVEWAL_LSN_LEN, "%X/%X", (unsigned)(lsn >> 32), (unsigned)(lsn & UINT32_MAX));
    return buffer;
}

static receivewal_status bad_segment_size(uint32_t segment_size)
{
    return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID,
                           "segment_size is %u: it is a power of two from 1 MiB to 1 GiB", (unsigned)segment_size);
}

/* XLogFileName in xlog_internal.h: timeline, then the segment's number as two parts that meet at 4 GiB. */
receivewal_status receivewal_segment_name(uint32_t timeline, receivewal_lsn lsn, uint32_t segment_size,
                                          char buffer[RECEIVEWAL_SEGMENT_NAME_LEN])
{
    if (buffer == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "receivewal_segment_name: buffer is NULL");
    if (!rw_segment_size_valid(segment_size))
        return bad_segment_size(segment_size);
    if (timeline == 0)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "timeline is 0: there is no such timeline");
    snprintf(buffer, RECEIVEWAL_SEGMENT_NAME_LEN, "%08X%08X%08X", (unsigned)timeline, (unsigned)(lsn >> 32),
             (unsigned)((lsn & UINT32_MAX) / segment_size));
    return RECEIVEWAL_OK;
}

receivewal_status receivewal_segment_parse(const char *name, uint32_t segment_size, uint32_t *timeline, receivewal_lsn *lsn)
{
    uint32_t part[3] = { 0, 0, 0 };
    size_t length;

    if (name == NULL)
        return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "receivewal_segment_parse: name is NULL");
    if (!rw_segment_size_valid(segment_size))
        return bad_segment_size(segment_size);
    length = strspn(name, "0123456789ABCDEF");
    if (length == 24 && name[24] == '\0')
    {
        for (size_t i = 0; i < 24; i++)
            part[i / 8] = part[i / 8] << 4 | (uint32_t)hex_digit(name[i]);
        if (part[0] != 0 && part[2] < (UINT64_C(1) << 32) / segment_size)
        {
            if (timeline != NULL)
                *timeline = part[0];
            if (lsn != NULL)
                *lsn = (receivewal_lsn)part[1] << 32 | (receivewal_lsn)part[2] * segment_size;
            return RECEIVEWAL_OK;
        }
    }
    return rw_thread_error(NULL, RECEIVEWAL_ERR_INVALID, "\"%.40s\" is not the name of a segment of %u bytes", name,
                           (unsigned)segment_size);
}
