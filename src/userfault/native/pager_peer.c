// Pages of another process or host, from a page server (paging/tcp.py): each thread that fills asks over a connection of its own, and
// makes it anew where it breaks.
#include "wire.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// CRC-32 as zlib has it (polynomial 0xedb88320, reflected), eight bytes a step.
static u32 crc_table[8][256];

void peer_prepare(void) {
    for (u32 i = 0; i < 256; i++) {
        u32 c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
        crc_table[0][i] = c;
    }
    for (u32 i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++) crc_table[k][i] = crc_table[k - 1][i] >> 8 ^ crc_table[0][crc_table[k - 1][i] & 255];
}

static u32 crc32_of(const u8 *data, u64 length) {
    u32 c = ~0u;
    for (; length >= 8; data += 8, length -= 8) {
        u32 low, high;
        memcpy(&low, data, 4), memcpy(&high, data + 4, 4);
        low ^= c;
        c = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255] ^ crc_table[4][low >> 24] ^
            crc_table[3][high & 255] ^ crc_table[2][high >> 8 & 255] ^ crc_table[1][high >> 16 & 255] ^ crc_table[0][high >> 24];
    }
    while (length--) c = crc_table[0][(c ^ *data++) & 255] ^ c >> 8;
    return ~c;
}

// Whether the slot's descriptor is still the socket that it was: the application may have closed it, and have another file there.
static bool is_connected(const slot *s) {
    struct stat st;
    return s->peer_ino && !fstat(s->peer_fd, &st) && S_ISSOCK(st.st_mode) && st.st_ino == s->peer_ino;
}

void peer_disconnect(slot *s) {
    if (is_connected(s)) close(s->peer_fd);
    s->peer_ino = 0;
}

// Until `fd` is ready, or the time that one request may take is over, or the region ends. 0 or -errno.
static int await(pager *p, slot *s, int fd, short events, u64 end_ns) {
    // The application may have closed the event's descriptor, but not the handlers'.
    struct pollfd f[2] = {{.fd = fd, .events = events}, {.fd = s->role ? p->event_fd : -1, .events = POLLIN}};
    for (;;) {
        u64 now = now_ns();
        if (now >= end_ns) return -ETIMEDOUT;
        int n = poll(f, 2, (int)((end_ns - now) / 1000000 + 1));
        if (n < 0 && errno != EINTR) return -errno;
        if (atomic_load(&p->stopping)) return -ECANCELED;
        if (n > 0 && f[0].revents) return 0;
        if (n > 0) f[1].fd = -1; // it rings for something else
    }
}

static int transfer(pager *p, slot *s, int fd, void *data, u64 length, bool out, u64 end_ns) {
    while (length) {
        ssize_t n = out ? send(fd, data, length, MSG_NOSIGNAL) : recv(fd, data, length, 0);
        if (n < 0 && errno == EAGAIN) {
            int code = await(p, s, fd, out ? POLLOUT : POLLIN, end_ns);
            if (code) return code;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        if (!n) return -ECONNRESET;
        data = (u8 *)data + n, length -= (u64)n;
    }
    return 0;
}

static int dial(pager *p, slot *s, u64 end_ns) {
    struct sockaddr *address = (struct sockaddr *)p->peer;
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1, late = 0;
    if (fd < 0) return -errno;
    int code = connect(fd, address, p->peer_bytes) ? -errno : 0;
    if (code == -EINPROGRESS || code == -EINTR) code = await(p, s, fd, POLLOUT, end_ns);
    socklen_t size = sizeof late;
    if (!code && (getsockopt(fd, SOL_SOCKET, SO_ERROR, &late, &size) || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))) code = -errno;
    if (!code) code = -late;
    if (!code) return fd;
    close(fd);
    return code;
}

static int be_connected(pager *p, slot *s, const char **what, u64 end_ns) {
    // Who had this slot before may have died in the middle of an answer.
    if (s->peer_busy) peer_disconnect(s), s->peer_busy = 0;
    if (is_connected(s)) return 0;
    s->peer_ino = 0;
    *what = "connecting to the page server";
    int fd = dial(p, s, end_ns);
    if (fd < 0) return fd;
    header h = {.kind = START, .id = WIRE_VERSION, .address = WIRE_MAGIC};
    int code = transfer(p, s, fd, &h, sizeof h, true, end_ns);
    if (!code) code = transfer(p, s, fd, &h, sizeof h, false, end_ns);
    if (!code && (h.kind != READY || h.address != WIRE_MAGIC || h.id != WIRE_VERSION)) code = -EPROTO, *what = "the page server speaks another protocol";
    if (!code && h.offset != p->size) code = -ESTALE, *what = "the page server's data have another size than when they were opened";
    struct stat st;
    if (!code && fstat(fd, &st)) code = -errno;
    if (code) { close(fd); return code; }
    s->peer_fd = fd, s->peer_ino = st.st_ino;
    return 0;
}

// One request and its answer. The connection is good for another one, or closed.
static int ask_once(pager *p, slot *s, u64 offset, u64 length, u8 *to, const char **what) {
    i64 value = 0;
    u64 end_ns = now_ns() + p->peer_timeout_ms * 1000000ull;
    int code = be_connected(p, s, what, end_ns);
    if (code) return code;
    s->peer_busy = 1;
    *what = "reading from the page server";
    header h = {.kind = READ, .id = ++s->peer_id, .offset = offset, .length = length};
    code = transfer(p, s, s->peer_fd, &h, sizeof h, true, end_ns);
    if (!code && strike(p, s, AT_SOURCE_READ, &value) == DO_ERRNO) code = -(int)value;
    if (!code) code = transfer(p, s, s->peer_fd, &h, sizeof h, false, end_ns);
    if (!code && h.id != s->peer_id) code = -EPROTO;
    if (!code && h.kind == DATA && h.length == length) {
        code = transfer(p, s, s->peer_fd, to, length, false, end_ns);
        if (!code && crc32_of(to, length) != h.address) code = -ECONNRESET, *what = "the page was damaged on its way: its checksum is wrong";
    } else if (!code && h.kind == ERROR && h.length < ERROR_TEXT) {
        code = transfer(p, s, s->peer_fd, s->record, h.length, false, end_ns);
        if (!code) {
            s->record_bytes = (u32)h.length, s->peer_busy = 0;
            return h.status < 0 ? h.status : -EIO;
        }
    } else if (!code) code = -EPROTO;
    if (code) peer_disconnect(s);
    s->peer_busy = 0;
    return code;
}

// Part of the source, all of it inside the data. 0, or -errno with what failed, or the server's own record in the slot.
int peer_read(pager *p, slot *s, u64 offset, u64 length, u8 *to, const char **what) {
    for (u32 tries = 0;; tries++) {
        s->record_bytes = 0;
        int code = ask_once(p, s, offset, length, to, what);
        if (!code) { TALLY(s, in_bytes, length); return 0; }
        // The server has its own retries: what it says is final. What happens on the way to it is worth another try.
        bool again = !s->record_bytes && (code == -ETIMEDOUT || code == -ECONNRESET || code == -ECONNREFUSED || code == -EPIPE ||
                                          code == -EINTR || code == -EAGAIN || code == -EHOSTUNREACH || code == -ENETUNREACH);
        if (!again || tries >= p->retries || atomic_load(&p->stopping)) return code;
        COUNT(retry_count);
        u64 us = (u64)p->retry_us << (tries < 16 ? tries : 16);
        struct timespec t = {(time_t)(us / 1000000), (long)(us % 1000000 * 1000)};
        nanosleep(&t, NULL);
    }
}
