/* A connection that the host reads and writes itself, over a double that breaks in every way. */
#include <sys/epoll.h>

#include "double.h"
#include "server.h"

#define SEGMENTS 3
#define END (SERVER_START + SEGMENTS * SERVER_SEGMENT)

static receivewal_options options_for(const char *directory)
{
    receivewal_options o = RECEIVEWAL_OPTIONS_INIT;

    o.directory = directory;
    o.start_lsn = SERVER_START;
    o.end_lsn = END;
    o.no_sync = 1;
    return o;
}

/* Whether a directory has the server's first segments, byte for byte: pages of zeroes but for the first one's header. */
static bool has_segments(const char *directory, int count)
{
    static unsigned char got[SERVER_SEGMENT + 1];

    for (int i = 0; i < count; i++)
    {
        const uint64_t lsn = SERVER_START + (uint64_t)i * SERVER_SEGMENT;
        const uint16_t magic = 0xD110;
        char name[RECEIVEWAL_SEGMENT_NAME_LEN], path[300];
        uint64_t address;
        int fd;

        receivewal_segment_name(1, lsn, SERVER_SEGMENT, name);
        snprintf(path, sizeof(path), "%s/%s", directory, name);
        fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, got, sizeof(got)) != SERVER_SEGMENT)
            return false;
        close(fd);
        memcpy(&address, got + 8, 8);
        if (memcmp(got, &magic, 2) != 0 || address != lsn)
            return false;
        for (size_t at = 40; at < SERVER_SEGMENT; at++)
            if (got[at] != 0)
                return false;
    }
    return true;
}

/* The host's own next command, through its own functions. */
static bool host_asks(io_double *d)
{
    static const char query[] = "Q\0\0\0\x14IDENTIFY_SYSTEM";
    unsigned char answer[500];
    size_t got = 0;

    for (size_t put = 0; put < sizeof(query);)
    {
        ptrdiff_t n = double_write(d, query + put, sizeof(query) - put);

        if (n > 0)
            put += (size_t)n;
        else if (n != RECEIVEWAL_IO_WANT_READ && n != RECEIVEWAL_IO_WANT_WRITE)
            return false;
    }
    for (int64_t end = milliseconds() + 5000; milliseconds() < end;)
    {
        ptrdiff_t n = double_read(d, answer + got, sizeof(answer) - got);

        if (n > 0)
            got += (size_t)n;
        else if (n != RECEIVEWAL_IO_WANT_READ && n != RECEIVEWAL_IO_WANT_WRITE)
            return false;
        if (got > 6 && memcmp(answer + got - 6, "Z\0\0\0\5I", 6) == 0)
            return answer[0] == 'T' && memmem(answer, got, "7000000000000000001", 19) != NULL;
    }
    return false;
}

static void receives(const char *name, int wants, size_t piece, bool blocking)
{
    server server;
    int fd = server_start(&server, END + 1000, 0), flags, left = descriptors();
    const char *directory = new_directory();
    receivewal_options o = options_for(directory);
    receivewal_status status;
    io_double d;
    receivewal *rw;
    char title[200];

    fcntl(fd, F_SETFL, blocking ? O_RDWR : O_RDWR | O_NONBLOCK);
    flags = fcntl(fd, F_GETFL);
    double_init(&d, fd, 1 + (unsigned)wants);
    d.wants = wants;
    d.piece = piece;
    rw = attach_io(&d);
    status = receivewal_receive(rw, &o);
    snprintf(title, sizeof(title), "%s: receives every byte", name);
    CHECK(title, status == RECEIVEWAL_OK && has_segments(directory, SEGMENTS), "status %d (%s)", (int)status, receivewal_errmsg(rw));
    snprintf(title, sizeof(title), "%s: the double is called as it should", name);
    CHECK(title, !d.misused, "%s", d.how);
    snprintf(title, sizeof(title), "%s: the connection comes back", name);
    CHECK(title, receivewal_connection_usable(rw) == 1 && fcntl(fd, F_GETFL) == flags, "not usable, or other flags");
    REQUIRE(receivewal_detach(rw) == RECEIVEWAL_OK);
    CHECK(title, host_asks(&d) && fcntl(fd, F_GETFL) == flags, "the host cannot use it");
    CHECK("no descriptor is left", descriptors() == left, "%d, not %d", descriptors(), left);
    server_stop(&server);
    close(fd);
}

/* A call or a receive over a double that breaks. Returns its status; the text is in text. */
static receivewal_status broken(io_double *d, bool receive, char text[500])
{
    server server;
    int fd = server_start(&server, END + 1000, 0);
    receivewal_options o = options_for(new_directory());
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_status status;
    receivewal *rw;

    d->fd = fd;
    rw = attach_io(d);
    status = receive ? receivewal_receive(rw, &o) : receivewal_identify(rw, &system);
    snprintf(text, 500, "%s", receivewal_errmsg(rw));
    if (status != RECEIVEWAL_OK && receivewal_connection_usable(rw))
        double_misused(d, "the connection counts as usable");
    receivewal_detach(rw);
    server_stop(&server);
    close(fd);
    return status;
}

static void nonsense(void)
{
    static const struct
    {
        ptrdiff_t answer;
        bool read, write;
        const char *part;
    } cases[] = {
        { DOUBLE_TOO_LONG, true, true, "answered" },
        { -4, true, true, "answered -4 when asked for" },
        { -1000, true, true, "answered -1000 when" },
        { PTRDIFF_MIN, true, true, "which makes no sense" },
        { PTRDIFF_MAX - 1, true, true, "which makes no sense" },
        { 0, false, true, "receivewal_io.write answered 0" },
        { RECEIVEWAL_IO_ERROR, true, true, "the double broke: \xffProtocol error" },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (int receive = 0; receive <= 1; receive++)
            for (int write = 0; write <= 1; write++)
            {
                char title[100], text[500];
                receivewal_status status;
                io_double d;

                if (write ? !cases[i].write : !cases[i].read)
                    continue;
                double_init(&d, -1, 7);
                d.answer = cases[i].answer;
                /* In the middle of the stream, of which the status updates are all that is written: at its end. */
                *(write ? &d.write_breaks : &d.read_breaks) = !receive ? 10 : write ? 120 : 500000;
                status = broken(&d, receive, text);
                snprintf(title, sizeof(title), "%s answers %td, %s", write ? "write" : "read", cases[i].answer, receive ? "receive" : "identify");
                CHECK(title, status == RECEIVEWAL_ERR_CONNECTION && strstr(text, cases[i].part) != NULL && !d.misused,
                      "status %d, %s, %s", (int)status, text, d.how);
                CHECK("after that neither function is called", d.broken == 1 && d.calls_after == 0, "%d calls", d.calls_after);
            }
}

static void without_errmsg(void)
{
    server server;
    int fd = server_start(&server, END, 0);
    receivewal_connection connection = RECEIVEWAL_CONNECTION_INIT;
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_io io;
    receivewal *rw;
    io_double d;

    double_init(&d, fd, 1);
    d.read_breaks = 20;
    io = double_io(&d);
    io.errmsg = NULL;
    connection.fd = fd;
    connection.io = &io;
    REQUIRE(receivewal_attach(&connection, &rw) == RECEIVEWAL_OK);
    CHECK_ERROR("an error without a text", receivewal_identify(rw, &system), RECEIVEWAL_ERR_CONNECTION, rw, "receivewal_io.read failed");
    receivewal_detach(rw);
    server_stop(&server);
    close(fd);
}

/* The connection ends, or breaks, after every number of bytes: in the answers, and here and there in the stream. */
static void at_any_moment(void)
{
    static const struct
    {
        const char *name;
        bool write;
        ptrdiff_t answer;
    } kinds[] = { { "end", false, 0 }, { "read error", false, RECEIVEWAL_IO_ERROR }, { "write error", true, RECEIVEWAL_IO_ERROR } };

    for (size_t kind = 0; kind < 3; kind++)
    {
        char title[100], text[500] = "";
        receivewal_status status;
        long long last = 0, wrong = -1;
        io_double d;

        do
        {
            double_init(&d, -1, (unsigned)last);
            d.piece = last % 3 == 0 ? 1 + (size_t)last % 100 : 0;
            d.wants = last % 5 == 0 ? 30 : 0;
            d.answer = kinds[kind].answer;
            *(kinds[kind].write ? &d.write_breaks : &d.read_breaks) = last;
            status = broken(&d, true, text);
            if (d.broken > 0 && (status != RECEIVEWAL_ERR_CONNECTION || d.misused || d.calls_after > 0) && status != RECEIVEWAL_OK)
                wrong = last;
            last += kinds[kind].write ? 1 : last < 1500 ? 13 : 400003;
        } while (wrong < 0 && d.broken > 0);
        snprintf(title, sizeof(title), "%s at any moment", kinds[kind].name);
        CHECK(title, wrong < 0, "after %lld bytes: status %d, %s, %s, %d calls after", wrong, (int)status, text,
              d.misused ? d.how : "", d.calls_after);
        CHECK("moments", last > 100, "only %lld", last);
    }
}

static unsigned char notice[] = "S\0\0\0\x0fname\0value"; /* ParameterStatus */
static unsigned char row[] = "D\0\0\0\6\0";              /* a DataRow, which nobody asked for */

/* What the server sends behind the last answer is dealt with before the connection comes back. */
static void behind_the_last_answer(void)
{
    static const struct
    {
        const char *name;
        unsigned char *bytes;
        size_t length, late;
        int usable;
    } cases[] = {
        { "a whole message", notice, sizeof(notice), 0, 1 },
        { "a message in two parts", notice, sizeof(notice), 9, 1 },
        { "a message with its end late", notice, sizeof(notice), 1, 1 },
        { "an answer to nothing", row, sizeof(row), 0, 0 },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (int mode = 0; mode < 4; mode++)
        {
            server server;
            int fd = server_start(&server, END + 1000, 0);
            receivewal_options o = options_for(new_directory());
            receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
            receivewal_status status;
            char title[100];
            io_double d;
            receivewal *rw;
            int usable;

            double_init(&d, fd, 3 + (unsigned)mode);
            d.wants = mode & 1 ? 20 : 0;
            rw = attach_io(&d);
            REQUIRE(receivewal_identify(rw, &system) == RECEIVEWAL_OK);
            d.after_ready = cases[i].bytes;
            d.after_ready_length = cases[i].length;
            d.after_ready_late = cases[i].late;
            if (mode & 2)
            {
                status = receivewal_start(rw, &o);
                while (status == RECEIVEWAL_OK && (status = receivewal_wait(rw, 10)) == RECEIVEWAL_PENDING)
                    status = RECEIVEWAL_OK;
                if (!cases[i].usable)
                    status = RECEIVEWAL_OK; /* it comes already between two commands */
            }
            else
            {
                d.after_ready_once = true;
                status = receivewal_drop_slot(rw, "gone", 0);
                status = status == RECEIVEWAL_ERR_NO_SLOT ? RECEIVEWAL_OK : status;
            }
            usable = receivewal_connection_usable(rw);
            snprintf(title, sizeof(title), "behind the last answer: %s", cases[i].name);
            CHECK(title, status == RECEIVEWAL_OK && usable == cases[i].usable && !d.misused, "status %d, usable %d, %s, mode %d (%s)",
                  (int)status, usable, d.misused ? d.how : "", mode, receivewal_errmsg(rw));
            d.after_ready = NULL;
            receivewal_detach(rw);
            CHECK(title, !usable || host_asks(&d), "the host's next command fails, mode %d", mode);
            server_stop(&server);
            close(fd);
        }
}

static int count_segment(void *ctx, const receivewal_segment *segment)
{
    int *segments = ctx;

    (void)segment;
    ++*segments;
    return 0;
}

/* receivewal_event_fd is readable when there is something to do, and only then. */
static void in_the_background(const char *name, int wants, size_t piece)
{
    server server;
    int fd = server_start(&server, END + 1000, 0), loop = epoll_create1(EPOLL_CLOEXEC), idle = 0, segments = 0;
    struct epoll_event event = { .events = EPOLLIN };
    const char *directory = new_directory();
    receivewal_options o = options_for(directory);
    receivewal_status status = RECEIVEWAL_PENDING;
    int64_t began = milliseconds();
    char title[100];
    io_double d;
    receivewal *rw;

    double_init(&d, fd, 11);
    d.wants = wants;
    d.piece = piece;
    rw = attach_io(&d);
    o.end_lsn = 0;
    o.events.ctx = &segments;
    o.events.segment_completed = count_segment;
    REQUIRE(epoll_ctl(loop, EPOLL_CTL_ADD, receivewal_event_fd(rw), &event) == 0);
    REQUIRE(receivewal_start(rw, &o) == RECEIVEWAL_OK);
    while (status == RECEIVEWAL_PENDING && segments < SEGMENTS && milliseconds() < began + 60000)
        if (epoll_wait(loop, &event, 1, 50) == 1)
            status = receivewal_dispatch(rw);
    snprintf(title, sizeof(title), "background %s: receives every byte by the event loop alone", name);
    CHECK(title, status == RECEIVEWAL_PENDING && has_segments(directory, SEGMENTS), "status %d", (int)status);

    /* Nothing happens now: the loop sleeps. */
    began = milliseconds();
    while (milliseconds() < began + 500)
        if (epoll_wait(loop, &event, 1, 50) == 1)
        {
            idle++;
            status = receivewal_dispatch(rw);
        }
    snprintf(title, sizeof(title), "background %s: an idle stream costs nothing", name);
    CHECK(title, idle < 20 && status == RECEIVEWAL_PENDING, "%d calls in half a second", idle);

    REQUIRE(receivewal_stop(rw) == RECEIVEWAL_OK);
    began = milliseconds();
    while (status == RECEIVEWAL_PENDING && milliseconds() < began + 10000)
        if (epoll_wait(loop, &event, 1, 50) == 1)
            status = receivewal_dispatch(rw);
    snprintf(title, sizeof(title), "background %s: stops", name);
    CHECK(title, status == RECEIVEWAL_ERR_STOPPED && receivewal_connection_usable(rw) && !d.misused, "status %d, %s", (int)status,
          d.misused ? d.how : "");
    CHECK(title, receivewal_detach(rw) == RECEIVEWAL_OK && host_asks(&d), "the host's next command fails");
    close(loop);
    server_stop(&server);
    close(fd);
}

static receivewal *inside_rw;
static int let_in, refused, progressed;

static void call_back(io_double *d)
{
    receivewal_options o = options_for("/tmp");
    receivewal_system system = RECEIVEWAL_SYSTEM_INIT;
    receivewal_progress progress = RECEIVEWAL_PROGRESS_INIT;

    (void)d;
    if (receivewal_identify(inside_rw, &system) == RECEIVEWAL_ERR_BUSY && receivewal_receive(inside_rw, &o) == RECEIVEWAL_ERR_BUSY &&
        receivewal_start(inside_rw, &o) == RECEIVEWAL_ERR_BUSY && receivewal_wait(inside_rw, -1) == RECEIVEWAL_ERR_BUSY &&
        receivewal_dispatch(inside_rw) == RECEIVEWAL_ERR_BUSY && receivewal_detach(inside_rw) == RECEIVEWAL_ERR_BUSY &&
        receivewal_connection_usable(inside_rw) == 0)
        refused++;
    else
        let_in++;
    if (receivewal_get_progress(inside_rw, &progress) == RECEIVEWAL_OK)
        progressed++;
}

static void calls_inside(void)
{
    server server;
    int fd = server_start(&server, END + 1000, 0);
    receivewal_options o = options_for(new_directory());
    io_double d;

    double_init(&d, fd, 1);
    inside_rw = attach_io(&d);
    d.inside = call_back;
    CHECK_STATUS("a receive whose io calls the library", receivewal_receive(inside_rw, &o), RECEIVEWAL_OK);
    CHECK("calls inside io are refused", let_in == 0 && refused > 0, "%d let in, %d refused", let_in, refused);
    CHECK("progress inside io works", progressed == refused, "%d of %d", progressed, refused);
    receivewal_detach(inside_rw);
    server_stop(&server);
    close(fd);
}

static void stop_inside(io_double *d)
{
    if (d->read > 1000000)
        receivewal_stop(inside_rw);
}

static void stop_from_inside(void)
{
    server server;
    int fd = server_start(&server, END + 1000, 0);
    receivewal_options o = options_for(new_directory());
    io_double d;

    double_init(&d, fd, 1);
    inside_rw = attach_io(&d);
    d.inside = stop_inside;
    CHECK_STATUS("a stop inside io", receivewal_receive(inside_rw, &o), RECEIVEWAL_ERR_STOPPED);
    d.inside = NULL;
    CHECK("usable after a stop inside io", receivewal_connection_usable(inside_rw) == 1, "not so");
    receivewal_detach(inside_rw);
    CHECK("usable after a stop inside io", host_asks(&d), "the host's next command fails");
    server_stop(&server);
    close(fd);
}

/* The host closes its descriptor, or puts another one in its place, while it is lent. */
static int stranger[2];

static void close_fd(io_double *d)
{
    if (d->read > 1000000)
    {
        close(d->fd);
        d->behind = NULL;
    }
}

static void replace_fd(io_double *d)
{
    if (d->read > 1000000)
    {
        dup2(stranger[0], d->fd);
        d->behind = NULL;
        d->broken = 1; /* no call may come after this one */
    }
}

static void under_us(const char *name, void (*behind)(io_double *), const char *part)
{
    server server;
    int fd = server_start(&server, END + 1000, 0);
    receivewal_options o = options_for(new_directory());
    receivewal_status status;
    char byte;
    io_double d;
    receivewal *rw;

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stranger) == 0 && write(stranger[1], "x", 1) == 1);
    server.pause = 1000;
    double_init(&d, fd, 1);
    d.behind = behind;
    rw = attach_io(&d);
    status = receivewal_receive(rw, &o);
    CHECK(name, status == RECEIVEWAL_ERR_CONNECTION && strstr(receivewal_errmsg(rw), part) != NULL, "status %d, %s", (int)status,
          receivewal_errmsg(rw));
    CHECK("the connection is not usable then", receivewal_connection_usable(rw) == 0, "usable");
    receivewal_detach(rw);
    if (behind == replace_fd)
        CHECK("nothing of a stranger's socket is touched",
              recv(stranger[1], &byte, 1, MSG_DONTWAIT) < 0 && recv(stranger[0], &byte, 1, MSG_DONTWAIT) == 1, "it was");
    server_stop(&server);
    close(fd);
    close(stranger[0]);
    close(stranger[1]);
}

static int plain_fd, plain_action;

static int tamper(void *ctx, const receivewal_segment *segment)
{
    (void)ctx;
    (void)segment;
    if (plain_action == 1)
        close(plain_fd);
    else if (plain_action == 2)
        dup2(stranger[0], plain_fd);
    plain_action = 0;
    return 0;
}

/* Without io, the library goes on with its own duplicate. */
static void plain_under_us(void)
{
    for (int action = 1; action <= 2; action++)
    {
        server server;
        int fd = server_start(&server, END + 1000, 1000);
        const char *directory = new_directory();
        receivewal_options o = options_for(directory);
        receivewal_status status;
        receivewal *rw;
        char byte;

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stranger) == 0 && write(stranger[1], "x", 1) == 1);
        plain_fd = fd;
        plain_action = action;
        o.events.segment_completed = tamper;
        rw = attach(fd);
        status = receivewal_receive(rw, &o);
        CHECK(action == 1 ? "a plain descriptor closed under us" : "a plain descriptor replaced under us",
              status == RECEIVEWAL_OK && plain_action == 0 && has_segments(directory, SEGMENTS), "status %d, %s", (int)status,
              receivewal_errmsg(rw));
        receivewal_detach(rw);
        CHECK("a stranger's socket is left alone",
              recv(stranger[1], &byte, 1, MSG_DONTWAIT) < 0 && recv(stranger[0], &byte, 1, MSG_DONTWAIT) == 1, "it was not");
        if (action == 1)
            CHECK("a closed number is left alone", fcntl(fd, F_GETFD) < 0, "it is open");
        else
            close(fd);
        server_stop(&server);
        close(stranger[0]);
        close(stranger[1]);
    }
}

static void wrong_io(void)
{
    receivewal_connection c = RECEIVEWAL_CONNECTION_INIT;
    io_double d;
    receivewal_io io;
    receivewal *rw;
    int peer;

    c.fd = silent_connection(&peer);
    double_init(&d, c.fd, 1);
    io = double_io(&d);
    c.io = &io;
    io.read = NULL;
    CHECK_ERROR("io without read", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "io has no read");
    io = double_io(&d);
    io.write = NULL;
    CHECK_ERROR("io without write", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "no write");
    io = double_io(&d);
    io.size = 0;
    CHECK_ERROR("io of size 0", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_SIZE, NULL, "receivewal_io.size is 0");
    io.size = sizeof(io) - 1;
    CHECK_ERROR("io that is cut", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_SIZE, NULL, "inside the field errmsg");
    c.io = NULL;
    c.read_ahead_length = 1;
    CHECK_ERROR("read_ahead that is NULL", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "read_ahead is NULL");
    c.read_ahead = "x";
    c.read_ahead_length = SIZE_MAX;
    CHECK_ERROR("read_ahead of all memory", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "read_ahead_length");
    c.read_ahead_length = 0;
    c.streaming = 1;
    CHECK_ERROR("streaming without a timeline", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "stream_timeline");
    c.streaming = 0;
    c.stream_lsn = 1;
    CHECK_ERROR("stream_lsn without streaming", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "without streaming");
    c.stream_lsn = 0;
    c.segment_size = 12345;
    CHECK_ERROR("segment_size that is none", receivewal_attach(&c, &rw), RECEIVEWAL_ERR_INVALID, NULL, "segment_size");
    close(c.fd);
    close(peer);
}

int main(void)
{
    int peer, fd = silent_connection(&peer);

    receivewal_detach(attach(fd)); /* the core opens descriptors of its own */
    close(fd);
    close(peer);
    receives("at full speed", 0, 0, false);
    receives("blocking descriptor", 0, 0, true);
    receives("at random", 40, 3000, false);
    receives("in small pieces", 10, 7, false);
    receives("byte by byte", 3, 1, false);
    nonsense();
    without_errmsg();
    at_any_moment();
    behind_the_last_answer();
    in_the_background("at full speed", 0, 0);
    in_the_background("at random", 40, 500);
    calls_inside();
    stop_from_inside();
    under_us("the descriptor is closed under us", close_fd, "was closed while it was lent");
    under_us("the descriptor is replaced under us", replace_fd, "was replaced");
    plain_under_us();
    wrong_io();
    return 0;
}
