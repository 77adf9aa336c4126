/* What a caller can pass wrongly: each gives its code, and a sentence that names the thing. */
#include <arpa/inet.h>
#include <limits.h>
#include <netinet/in.h>

#include "check.h"

static receivewal_status try_fd(int fd)
{
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal *rw = (receivewal *)&c;
    receivewal_status status;

    c.fd = fd;
    status = receivewal_attach(&c, &rw);
    CHECK("attach that fails gives a NULL handle", (status == RECEIVEWAL_OK) == (rw != NULL), "%p", (void *)rw);
    if (status == RECEIVEWAL_OK)
        receivewal_detach(rw);
    return status;
}

static void descriptors_of_all_kinds(void)
{
    char name[] = "descriptor 1000 ";
    int fd, peer;

    CHECK_ERROR("fd -1", try_fd(-1), RECEIVEWAL_ERR_BAD_FD, NULL, "descriptor -1 is not open");
    CHECK_ERROR("fd closed", try_fd(1000), RECEIVEWAL_ERR_BAD_FD, NULL, name);
    fd = open("/dev/null", O_RDWR);
    CHECK_ERROR("fd of a device", try_fd(fd), RECEIVEWAL_ERR_NOT_SOCKET, NULL, "is not a socket");
    close(fd);
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK_ERROR("fd of a UDP socket", try_fd(fd), RECEIVEWAL_ERR_NOT_SOCKET, NULL, "not a stream socket");
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_ERROR("fd of an unconnected TCP socket", try_fd(fd), RECEIVEWAL_ERR_NOT_CONNECTED, NULL, "no peer");
    close(fd);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_ERROR("fd of an unconnected Unix socket", try_fd(fd), RECEIVEWAL_ERR_NOT_CONNECTED, NULL, "no peer");
    close(fd);
    fd = silent_connection(&peer);
    CHECK_STATUS("fd of a connected socket", try_fd(fd), RECEIVEWAL_OK);
    CHECK("the fd stays the host's", fcntl(fd, F_GETFD) >= 0, "closed");
    CHECK("a blocking fd stays blocking after detach", !(fcntl(fd, F_GETFL) & O_NONBLOCK), "non-blocking now");
    close(fd);
    close(peer);
}

static void attach_pointers(void)
{
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    receivewal *rw;

    CHECK_ERROR("attach without connection", receivewal_attach(NULL, &rw), RECEIVEWAL_ERR_INVALID, NULL, "connection is NULL");
    CHECK_ERROR("attach without rw", receivewal_attach(&c, NULL), RECEIVEWAL_ERR_INVALID, NULL, "rw is NULL");
    c.server_version = -1;
    CHECK_ERROR("attach with a negative version", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "server_version");
}

/* For every struct: sizes that can't be, a smaller one that can, a larger one with zeroes, and one with more. */
#define SIZES(type, INIT, smaller, cut, call, rw)                                                                      \
    do                                                                                                                 \
    {                                                                                                                  \
        struct                                                                                                         \
        {                                                                                                              \
            type s;                                                                                                    \
            unsigned char tail[64];                                                                                    \
        } x = { INIT, { 0 } };                                                                                         \
        char expect[100];                                                                                              \
        x.s.size = 0;                                                                                                  \
        CHECK_ERROR(#type " size 0", call, RECEIVEWAL_ERR_SIZE, rw, #type ".size is 0");                               \
        x.s.size = sizeof(size_t);                                                                                     \
        CHECK_ERROR(#type " only a size", call, RECEIVEWAL_ERR_SIZE, rw, #type ".size is 8");                          \
        x.s.size = (size_t)1 << 40;                                                                                    \
        CHECK_ERROR(#type " absurd size", call, RECEIVEWAL_ERR_SIZE, rw, #type ".size is 1099511627776");              \
        x.s.size = cut;                                                                                                \
        CHECK_ERROR(#type " size that cuts a field", call, RECEIVEWAL_ERR_SIZE, rw, "inside the field");               \
        x.s.size = smaller;                                                                                            \
        CHECK(#type " smaller", (call) != RECEIVEWAL_ERR_SIZE, "%s", receivewal_errmsg(rw));                           \
        x.s.size = sizeof(x);                                                                                          \
        CHECK(#type " larger with zeroes", (call) != RECEIVEWAL_ERR_SIZE, "%s", receivewal_errmsg(rw));                \
        x.tail[5] = 1;                                                                                                 \
        snprintf(expect, sizeof(expect), "byte %zu is set", sizeof(type) + 5);                                         \
        CHECK_ERROR(#type " larger with more", call, RECEIVEWAL_ERR_SIZE, rw, expect);                                 \
    } while (0)

static void sizes(receivewal *rw)
{
    receivewal *other;

    SIZES(receivewal_connection, RECEIVEWAL_CONNECTION_INIT, offsetof(receivewal_connection, server_version), 14,
          receivewal_attach(&x.s, &other), NULL);
    /* No directory: complained about once the size has been accepted, before anything is sent. */
    SIZES(receivewal_options, RECEIVEWAL_OPTIONS_INIT, offsetof(receivewal_options, slot), offsetof(receivewal_options, slot) + 4,
          receivewal_receive(rw, &x.s), rw);
    SIZES(receivewal_options, RECEIVEWAL_OPTIONS_INIT, offsetof(receivewal_options, events), offsetof(receivewal_options, slot) + 4,
          receivewal_start(rw, &x.s), rw);
    SIZES(receivewal_progress, RECEIVEWAL_PROGRESS_INIT, offsetof(receivewal_progress, server_lsn),
          offsetof(receivewal_progress, segment) + 8, receivewal_get_progress(rw, &x.s), rw);
    SIZES(receivewal_start_point, RECEIVEWAL_START_POINT_INIT, offsetof(receivewal_start_point, segment_size), 18,
          receivewal_find_start("/nonexistent", 0, &x.s), NULL);
    /* A stop that is pending answers these as soon as the size has been accepted. */
    receivewal_stop(rw);
    SIZES(receivewal_system, RECEIVEWAL_SYSTEM_INIT, offsetof(receivewal_system, lsn), 18,
          (receivewal_stop(rw), receivewal_identify(rw, &x.s)), rw);
    SIZES(receivewal_slot, RECEIVEWAL_SLOT_INIT, offsetof(receivewal_slot, restart_timeline), 18,
          (receivewal_stop(rw), receivewal_create_slot(rw, "s", 0, &x.s)), rw);
    SIZES(receivewal_slot, RECEIVEWAL_SLOT_INIT, offsetof(receivewal_slot, restart_timeline), 18,
          (receivewal_stop(rw), receivewal_read_slot(rw, "s", &x.s)), rw);
    {
        receivewal_system system = RECEIVEWAL_SYSTEM_INIT;

        receivewal_stop(rw);
        CHECK_STATUS("the last pending stop is used up", receivewal_identify(rw, &system), RECEIVEWAL_ERR_STOPPED);
    }
}

/* A smaller struct is written only as far as it reaches. */
static void smaller_is_respected(receivewal *rw)
{
    receivewal_progress p;

    memset(&p, 0x5a, sizeof(p));
    p.size = offsetof(receivewal_progress, start_lsn);
    CHECK_STATUS("a smaller struct is filled", receivewal_get_progress(rw, &p), RECEIVEWAL_OK);
    CHECK("its fields are set", p.state == RECEIVEWAL_STATE_IDLE && p.timeline == 0, "%d %u", (int)p.state, p.timeline);
    CHECK("nothing behind it is", p.start_lsn == UINT64_C(0x5a5a5a5a5a5a5a5a) && p.segment[0] == 0x5a, "written");
    CHECK("its size stays", p.size == offsetof(receivewal_progress, start_lsn), "%zu", p.size);
}

#define OPTION(name, part, statement)                                                                                  \
    do                                                                                                                 \
    {                                                                                                                  \
        receivewal_options o = RECEIVEWAL_OPTIONS_INIT;                                                                \
        o.directory = "/tmp";                                                                                          \
        statement;                                                                                                     \
        CHECK_ERROR(name, receivewal_receive(rw, &o), RECEIVEWAL_ERR_INVALID, rw, part);                               \
        CHECK_ERROR(name " in the background", receivewal_start(rw, &o), RECEIVEWAL_ERR_INVALID, rw, part);            \
    } while (0)

static void some_event(void)
{
}

static void options(receivewal *rw)
{
    char path[PATH_MAX + 1], long_name[65];

    memset(path, 'x', PATH_MAX);
    path[0] = '/';
    path[PATH_MAX] = '\0';
    memset(long_name, 'a', 64);
    long_name[64] = '\0';
    CHECK_ERROR("options NULL", receivewal_receive(rw, NULL), RECEIVEWAL_ERR_INVALID, rw, "options is NULL");
    OPTION("directory NULL", "receivewal_options.directory is NULL", o.directory = NULL);
    OPTION("directory empty", "receivewal_options.directory is empty", o.directory = "");
    OPTION("directory too long", "receivewal_options.directory is longer than 4095", o.directory = path);
    OPTION("slot empty", "receivewal_options.slot", o.slot = "");
    OPTION("slot in upper case", "receivewal_options.slot is \"Slot\"", o.slot = "Slot");
    OPTION("slot of 64", "receivewal_options.slot", o.slot = long_name);
    OPTION("start_timeline alone", "start_timeline", o.start_timeline = 2);
    OPTION("status_interval negative", "status_interval", o.status_interval = -1);
    OPTION("progress_interval negative", "progress_interval", o.progress_interval = -1);
    OPTION("synchronous and no_sync", "no_sync", (o.synchronous = 1, o.no_sync = 1));
    OPTION("file_mode with other bits", "file_mode", o.file_mode = 04600);
    OPTION("file_mode without the owner", "file_mode", o.file_mode = 0440);
    OPTION("an event of the future", "events.reserved", o.events.reserved[5] = some_event);
}

static void slots(receivewal *rw)
{
    receivewal_slot slot = RECEIVEWAL_SLOT_INIT;
    static const char *const bad[] = { NULL, "", "A", "a-b", "a\"b", "\xff",
                                       "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
    {
        CHECK_ERROR("slot name to create", receivewal_create_slot(rw, bad[i], 0, &slot), RECEIVEWAL_ERR_INVALID, rw, "name is");
        CHECK_ERROR("slot name to drop", receivewal_drop_slot(rw, bad[i], 0), RECEIVEWAL_ERR_INVALID, rw, "name is");
        CHECK_ERROR("slot name to read", receivewal_read_slot(rw, bad[i], &slot), RECEIVEWAL_ERR_INVALID, rw, "name is");
    }
    CHECK_ERROR("create with a flag of drop", receivewal_create_slot(rw, "a", RECEIVEWAL_SLOT_WAIT, &slot), RECEIVEWAL_ERR_INVALID, rw,
                "flags 0x8");
    CHECK_ERROR("drop with a flag of create", receivewal_drop_slot(rw, "a", RECEIVEWAL_SLOT_TEMPORARY), RECEIVEWAL_ERR_INVALID, rw,
                "flags 0x2");
    CHECK_ERROR("create with an unknown flag", receivewal_create_slot(rw, "a", 16, &slot), RECEIVEWAL_ERR_INVALID, rw, "flags 0x10");
    CHECK_ERROR("read_slot without a result", receivewal_read_slot(rw, "a", NULL), RECEIVEWAL_ERR_INVALID, rw, "slot is NULL");
    CHECK_ERROR("identify without a result", receivewal_identify(rw, NULL), RECEIVEWAL_ERR_INVALID, rw, "system is NULL");
    CHECK_ERROR("get_progress without a result", receivewal_get_progress(rw, NULL), RECEIVEWAL_ERR_INVALID, rw, "progress is NULL");
}

static void directories(void)
{
    receivewal_start_point start = RECEIVEWAL_START_POINT_INIT;
    char path[PATH_MAX + 1];

    memset(path, 'x', PATH_MAX);
    path[PATH_MAX] = '\0';
    CHECK_ERROR("find_start NULL", receivewal_find_start(NULL, 0, &start), RECEIVEWAL_ERR_INVALID, NULL, "directory is NULL");
    CHECK_ERROR("find_start empty", receivewal_find_start("", 0, &start), RECEIVEWAL_ERR_INVALID, NULL, "directory is empty");
    CHECK_ERROR("find_start too long", receivewal_find_start(path, 0, &start), RECEIVEWAL_ERR_INVALID, NULL, "directory is longer");
    CHECK_ERROR("find_start segment size", receivewal_find_start("/tmp", 3 << 20, &start), RECEIVEWAL_ERR_INVALID, NULL, "3145728");
    CHECK_ERROR("find_start without a result", receivewal_find_start("/tmp", 0, NULL), RECEIVEWAL_ERR_INVALID, NULL, "start is NULL");
    CHECK_ERROR("find_start nowhere", receivewal_find_start("/nonexistent/\xff", 0, &start), RECEIVEWAL_ERR_NO_DIRECTORY, NULL,
                "/nonexistent/");
    CHECK_ERROR("find_start in a file", receivewal_find_start("/proc/self/status", 0, &start), RECEIVEWAL_ERR_NO_DIRECTORY, NULL,
                "/proc/self/status");
}

static void helpers(void)
{
    static const struct
    {
        const char *text;
        receivewal_lsn lsn;
    } good[] = { { "0/0", 0 }, { "16/B374D848", UINT64_C(0x16B374D848) }, { "ffffFFFF/FFFFffff", UINT64_MAX }, { "0/00000001", 1 } };
    static const char *const bad[] = { "", "/", "1/", "/1", "1/2/3", "1 /2", " 1/2", "1/2 ", "+1/2", "0x1/2", "123456789/0", "0/123456789",
                                       "g/0", "1", "-1/0", "1/2\n" };
    char buffer[RECEIVEWAL_LSN_LEN], name[RECEIVEWAL_SEGMENT_NAME_LEN];
    receivewal_lsn lsn;
    uint32_t timeline;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        CHECK("lsn_parse", receivewal_lsn_parse(good[i].text, &lsn) == RECEIVEWAL_OK && lsn == good[i].lsn, "%s", good[i].text);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK_ERROR("lsn_parse refuses", receivewal_lsn_parse(bad[i], &lsn), RECEIVEWAL_ERR_INVALID, NULL, bad[i]);
    CHECK_ERROR("lsn_parse NULL", receivewal_lsn_parse(NULL, &lsn), RECEIVEWAL_ERR_INVALID, NULL, "text is NULL");
    CHECK_ERROR("lsn_parse to NULL", receivewal_lsn_parse("0/0", NULL), RECEIVEWAL_ERR_INVALID, NULL, "lsn is NULL");
    CHECK("lsn_format", strcmp(receivewal_lsn_format(UINT64_C(0x16B374D848), buffer), "16/B374D848") == 0, "%s", buffer);
    CHECK("lsn_format of the largest", strcmp(receivewal_lsn_format(UINT64_MAX, buffer), "FFFFFFFF/FFFFFFFF") == 0, "%s", buffer);

    CHECK("segment_name", receivewal_segment_name(1, UINT64_C(0x1A7ABCDEF), 16 << 20, name) == RECEIVEWAL_OK &&
          strcmp(name, "0000000100000001000000A7") == 0, "%s", name);
    CHECK("segment_name of 1 GiB", receivewal_segment_name(0xabcdef01, UINT64_MAX, 1u << 30, name) == RECEIVEWAL_OK &&
          strcmp(name, "ABCDEF01FFFFFFFF00000003") == 0, "%s", name);
    CHECK_ERROR("segment_name of timeline 0", receivewal_segment_name(0, 0, 16 << 20, name), RECEIVEWAL_ERR_INVALID, NULL, "timeline");
    CHECK_ERROR("segment_name of no size", receivewal_segment_name(1, 0, 0, name), RECEIVEWAL_ERR_INVALID, NULL, "segment_size is 0");
    CHECK_ERROR("segment_name of half a MiB", receivewal_segment_name(1, 0, 1u << 19, name), RECEIVEWAL_ERR_INVALID, NULL, "segment_size");
    CHECK_ERROR("segment_name of 2 GiB", receivewal_segment_name(1, 0, 1u << 31, name), RECEIVEWAL_ERR_INVALID, NULL, "segment_size");

    CHECK("segment_parse", receivewal_segment_parse("0000000A00000001000000A7", 16 << 20, &timeline, &lsn) == RECEIVEWAL_OK &&
          timeline == 10 && lsn == UINT64_C(0x1A7000000), "%u %llx", timeline, (unsigned long long)lsn);
    CHECK_STATUS("segment_parse for nobody", receivewal_segment_parse("0000000A00000001000000A7", 16 << 20, NULL, NULL), RECEIVEWAL_OK);
    CHECK_STATUS("segment_parse last of 4 GiB", receivewal_segment_parse("0000000100000000000000FF", 16 << 20, NULL, NULL), RECEIVEWAL_OK);
    CHECK_STATUS("segment_parse beyond 4 GiB", receivewal_segment_parse("000000010000000000000100", 16 << 20, NULL, NULL), RECEIVEWAL_ERR_INVALID);
    CHECK_STATUS("segment_parse timeline 0", receivewal_segment_parse("000000000000000100000001", 16 << 20, NULL, NULL), RECEIVEWAL_ERR_INVALID);
    CHECK_STATUS("segment_parse lower case", receivewal_segment_parse("0000000a00000001000000a7", 16 << 20, NULL, NULL), RECEIVEWAL_ERR_INVALID);
    CHECK_STATUS("segment_parse partial", receivewal_segment_parse("0000000A00000001000000A7.partial", 16 << 20, NULL, NULL), RECEIVEWAL_ERR_INVALID);
    CHECK_STATUS("segment_parse short", receivewal_segment_parse("0000000A00000001000000A", 16 << 20, NULL, NULL), RECEIVEWAL_ERR_INVALID);
    CHECK_STATUS("segment_parse NULL", receivewal_segment_parse(NULL, 16 << 20, NULL, NULL), RECEIVEWAL_ERR_INVALID);

    CHECK("version", receivewal_version() == RECEIVEWAL_VERSION_NUM, "%d", receivewal_version());
    CHECK("version_string", strcmp(receivewal_version_string(), RECEIVEWAL_VERSION) == 0, "%s", receivewal_version_string());
    CHECK("strerror", strcmp(receivewal_strerror(RECEIVEWAL_ERR_CONNECTION), "connection lost") == 0, "%s",
          receivewal_strerror(RECEIVEWAL_ERR_CONNECTION));
    for (int i = -1; i < 200; i++)
        if (receivewal_strerror((receivewal_status)i) == NULL || receivewal_strerror((receivewal_status)i)[0] == '\0')
            CHECK("strerror of any value", false, "%d", i);
    CHECK("none of this loaded the core", threads() == 1, "%d threads", threads());
}

int main(void)
{
    int peer, fd = silent_connection(&peer);
    receivewal *rw;

    helpers();
    descriptors_of_all_kinds();
    attach_pointers();
    rw = attach(fd);
    options(rw);
    slots(rw);
    sizes(rw);
    smaller_is_respected(rw);
    directories();
    CHECK_STATUS("detach", receivewal_detach(rw), RECEIVEWAL_OK);
    {
        char byte;

        CHECK("nothing was sent", recv(peer, &byte, 1, MSG_DONTWAIT) < 0, "something was");
    }
    return 0;
}
