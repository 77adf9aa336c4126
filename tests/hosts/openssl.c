/* receivewal_openssl.h by itself: two sessions over a socket pair in one process. */
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <receivewal_openssl.h>

#include "check.h"

typedef struct pair
{
    int fd[2];
    SSL *ours, *peer;
    receivewal_io io;
} pair;

static SSL_CTX *server_context(int version)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();

    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
    X509_set_pubkey(certificate, key);
    REQUIRE(X509_sign(certificate, key, EVP_sha256()) > 0);
    REQUIRE(SSL_CTX_use_certificate(context, certificate) == 1 && SSL_CTX_use_PrivateKey(context, key) == 1);
    SSL_CTX_set_max_proto_version(context, version);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return context;
}

static void set_up(pair *p, int version, bool blocking)
{
    SSL_CTX *server = server_context(version), *client = SSL_CTX_new(TLS_client_method());
    int ours = 0, peer = 0;

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, p->fd) == 0);
    p->ours = SSL_new(client);
    p->peer = SSL_new(server);
    SSL_CTX_free(client);
    SSL_CTX_free(server);
    REQUIRE(SSL_set_fd(p->ours, p->fd[0]) == 1 && SSL_set_fd(p->peer, p->fd[1]) == 1);
    for (int i = 0; i < 100 && (ours != 1 || peer != 1); i++)
    {
        ours = SSL_connect(p->ours);
        peer = SSL_accept(p->peer);
    }
    REQUIRE(ours == 1 && peer == 1);
    if (blocking)
        fcntl(p->fd[0], F_SETFL, fcntl(p->fd[0], F_GETFL) & ~O_NONBLOCK);
    p->io = receivewal_openssl_io(p->ours);
}

static void tear_down(pair *p)
{
    SSL_free(p->ours);
    SSL_free(p->peer);
    close(p->fd[0]);
    if (p->fd[1] >= 0)
        close(p->fd[1]);
}

static ptrdiff_t io_read(pair *p, void *buffer, size_t length)
{
    return p->io.read(p->io.ctx, buffer, length);
}

/* The same, where something is known to be there: behind session tickets, perhaps. */
static ptrdiff_t io_read_all(pair *p, void *buffer, size_t length)
{
    ptrdiff_t n = RECEIVEWAL_IO_WANT_READ;

    for (int i = 0; i < 10 && n == RECEIVEWAL_IO_WANT_READ; i++)
        n = io_read(p, buffer, length);
    return n;
}

static void reads_and_writes(const char *name, int version, bool blocking)
{
    static unsigned char out[300000], in[300000];
    size_t put = 0, got = 0;
    char title[200];
    ptrdiff_t n;
    pair p;

    set_up(&p, version, blocking);
    snprintf(title, sizeof(title), "%s: nothing to read", name);
    CHECK(title, io_read(&p, in, sizeof(in)) == RECEIVEWAL_IO_WANT_READ, "something else");

    /* An error that somebody else has left on this thread is not ours. */
    ERR_raise(ERR_LIB_USER, 1);
    CHECK(title, (n = io_read(&p, in, sizeof(in))) == RECEIVEWAL_IO_WANT_READ, "%td after a foreign error", n);

    for (size_t i = 0; i < sizeof(out); i++)
        out[i] = (unsigned char)(i * 7 + i / 255);
    while (got < sizeof(in))
    {
        int m;

        if (put < sizeof(out) && !blocking)
        {
            n = p.io.write(p.io.ctx, out + put, sizeof(out) - put);
            REQUIRE(n > 0 || n == RECEIVEWAL_IO_WANT_WRITE);
            put += n > 0 ? (size_t)n : 0;
        }
        else if (put < sizeof(out))
        {
            n = p.io.write(p.io.ctx, out + put, 1000);
            REQUIRE(n > 0);
            put += (size_t)n;
        }
        while ((m = SSL_read(p.peer, in + got, (int)(sizeof(in) - got))) > 0)
            got += (size_t)m;
    }
    snprintf(title, sizeof(title), "%s: writes every byte", name);
    CHECK(title, memcmp(in, out, sizeof(in)) == 0, "other bytes");

    memset(in, 0, sizeof(in));
    for (put = got = 0; got < sizeof(in);)
    {
        if (put < sizeof(out) && SSL_write(p.peer, out + put, 1000) == 1000)
            put += 1000;
        while (got < sizeof(in) && (n = io_read(&p, in + got, 1 + got % 20000 < sizeof(in) - got ? 1 + got % 20000 : sizeof(in) - got)) > 0)
            got += (size_t)n;
        REQUIRE(n > 0 || n == RECEIVEWAL_IO_WANT_READ);
    }
    snprintf(title, sizeof(title), "%s: reads every byte", name);
    CHECK(title, memcmp(in, out, sizeof(in)) == 0, "other bytes");

    SSL_shutdown(p.peer);
    snprintf(title, sizeof(title), "%s: an end that was announced", name);
    CHECK(title, (n = io_read_all(&p, in, sizeof(in))) == 0, "%td", n);
    tear_down(&p);

    set_up(&p, version, blocking);
    close(p.fd[1]);
    p.fd[1] = -1;
    snprintf(title, sizeof(title), "%s: an end that was not announced", name);
    CHECK(title, (n = io_read_all(&p, in, sizeof(in))) == 0, "%td", n);
    tear_down(&p);

    set_up(&p, version, blocking);
    snprintf(title, sizeof(title), "%s: bytes that are no TLS", name);
    REQUIRE(write(p.fd[1], "HTTP/1.1 200 OK\r\n\r\n", 19) == 19);
    n = io_read_all(&p, in, sizeof(in));
    p.io.errmsg(p.io.ctx, title + 100, 100);
    CHECK("bytes that are no TLS", n == RECEIVEWAL_IO_ERROR && strncmp(title + 100, "SSL error: ", 11) == 0 && ERR_peek_error() == 0,
          "%td: %s", n, title + 100);
    tear_down(&p);
}

static int pipes;

static void on_pipe(int signo)
{
    (void)signo;
    pipes++;
}

/* SIGPIPE has its default, and would end this process. */
static void without_sigpipe(void)
{
    sigset_t mask, before, pending;
    char text[20];
    ptrdiff_t n;
    pair p;

    set_up(&p, TLS1_3_VERSION, false);
    close(p.fd[1]);
    p.fd[1] = -1;
    n = p.io.write(p.io.ctx, "x", 1);
    p.io.errmsg(p.io.ctx, text, sizeof(text));
    CHECK("a write to nobody", n == RECEIVEWAL_IO_ERROR && strcmp(text, "SSL SYSCALL error: ") == 0, "%td: %s", n, text);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    CHECK("the mask is as before", sigismember(&mask, SIGPIPE) == 0, "SIGPIPE is blocked");
    tear_down(&p);

    set_up(&p, TLS1_3_VERSION, false);
    close(p.fd[1]);
    p.fd[1] = -1;
    signal(SIGPIPE, on_pipe);
    p.io.write(p.io.ctx, "x", 1);
    CHECK("a handler hears nothing", pipes == 0, "%d", pipes);
    tear_down(&p);

    /* A host that blocks SIGPIPE, and for which one waits already, keeps that one. */
    set_up(&p, TLS1_3_VERSION, false);
    close(p.fd[1]);
    p.fd[1] = -1;
    sigemptyset(&mask);
    sigaddset(&mask, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &mask, &before);
    p.io.write(p.io.ctx, "x", 1);
    sigpending(&pending);
    CHECK("a host that blocks it finds none", !sigismember(&pending, SIGPIPE), "one is pending");
    raise(SIGPIPE);
    p.io.write(p.io.ctx, "x", 1);
    sigpending(&pending);
    CHECK("but keeps its own", sigismember(&pending, SIGPIPE) == 1, "it is gone");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK("and gets it", pipes == 1, "%d", pipes);
    tear_down(&p);
}

int main(void)
{
    alarm(60); /* a read that blocks */
    without_sigpipe();
    reads_and_writes("TLS 1.2", TLS1_2_VERSION, false);
    reads_and_writes("TLS 1.3", TLS1_3_VERSION, false);
    reads_and_writes("TLS 1.3, blocking", TLS1_3_VERSION, true);
    return 0;
}
