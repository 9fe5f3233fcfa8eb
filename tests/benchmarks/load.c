/* Load for a Gearman server: clients and workers on one core. load.py compiles and runs it, and has the options.
 *
 * One epoll loop serves all connections. What a connection has to say is counted, and turned into packets when there
 * is room for them, so a connection needs next to no memory. A body beyond LARGE bytes is sent from one page-aligned
 * block that all share, and is dropped in the kernel where it is received.
 *
 * The workload of a job begins with its number, and the result is the workload. So a client knows when it submitted
 * the job whose result it gets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { /* packets, by the numbers of the protocol */
    CAN_DO = 1, PRE_SLEEP = 4, NOOP = 6, SUBMIT_JOB = 7, JOB_CREATED = 8, GRAB_JOB = 9, NO_JOB = 10, JOB_ASSIGN = 11,
    WORK_COMPLETE = 13, ECHO_REQ = 16, ECHO_RES = 17, SUBMIT_JOB_BG = 18, ERROR = 19
};
enum {
    HEADER = 12,
    NUMBER = 16,            /* digits of a job's number */
    LARGE = 32 << 10,       /* a body of more bytes is never copied here */
    START = 256,            /* so much of a large body is looked at: a handle, a function and a number */
    BATCH = 64 << 10,       /* bytes of packets that are made for one write */
    INPUT = 256 << 10,      /* bytes that one read takes at most */
    PATIENCE = 120 * 1000   /* ms without any event after which the server counts as stuck */
};

struct result { char handle[64]; int length; char number[NUMBER]; };

struct peer {
    int fd;
    bool works, waits_to_write, has_answer;
    long submissions;                 /* due: jobs of a client */
    long grabs;                       /* due */
    bool can_do, sleep, echo;         /* due */
    struct result *results;           /* due: a ring of as many as the worker grabs at once */
    int first, due;
    long in_flight, grabbing;         /* jobs of a client; GRABs of a worker */
    char *output; size_t written, made;
    size_t filler;                    /* bytes of the shared block that follow the output */
    char *partial; size_t kept;       /* the beginning of a packet that is not complete */
    size_t dropping;                  /* bytes of a large one that are still to come */
};

static struct { long clients, depth, workers, grabs, payload, jobs, unique; const char *function; } load =
    {1, 1, 0, 1, NUMBER, 0, 1, "load"};
static struct sockaddr_in address = {.sin_family = AF_INET};
static clockid_t server_clock;
static pid_t server;
static int poller;
static bool background;               /* clients wait for JOB_CREATED only */
static bool only_sleeps;              /* workers never grab */
static long submitted, created, completed, finished, asleep, echoed; /* finished: as workers see it */
static double *began, *took;          /* by number: seconds */
static long times;
static char *filler, *input;

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "load: %s%s%s\n", what, *detail ? ": " : "", detail);
    exit(1);
}

static double seconds(clockid_t clock) {
    struct timespec time;
    if (clock_gettime(clock, &time)) fail("the server has ended", "");
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static long resident(void) { /* bytes of memory that the server has */
    char path[64];
    long pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", server);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1) fail(path, "cannot be read");
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

/* Packets out */

static void put(struct peer *peer, const void *bytes, size_t length) {
    memcpy(peer->output + peer->made, bytes, length);
    peer->made += length;
}

static void header(struct peer *peer, uint32_t type, size_t length) {
    uint32_t fields[2] = {htonl(type), htonl(length)};
    put(peer, "\0REQ", 4);
    put(peer, fields, sizeof fields);
}

static void workload(struct peer *peer, const char *number) {
    put(peer, number, NUMBER);
    if (load.payload > LARGE) peer->filler = load.payload - NUMBER;
    else put(peer, filler, load.payload - NUMBER);
}

static void submission(struct peer *peer) {
    char number[NUMBER + 1], unique[64] = "";
    snprintf(number, sizeof number, "%0*ld", NUMBER, submitted);
    if (load.unique == 1) snprintf(unique, sizeof unique, "%08lx-10ad-4000-8000-%012lx", submitted, submitted);
    if (load.unique == 2) snprintf(unique, sizeof unique, "~%032lx", submitted); /* one that means nothing */
    size_t name = strlen(load.function) + 1, key = strlen(unique) + 1;
    header(peer, background ? SUBMIT_JOB_BG : SUBMIT_JOB, name + key + load.payload);
    put(peer, load.function, name);
    put(peer, unique, key);
    began[submitted++] = seconds(CLOCK_MONOTONIC);
    workload(peer, number);
}

static void result(struct peer *peer) {
    struct result *done = &peer->results[peer->first];
    peer->first = (peer->first + 1) % load.grabs;
    peer->due--;
    header(peer, WORK_COMPLETE, done->length + 1 + load.payload);
    put(peer, done->handle, done->length);
    put(peer, "", 1);
    workload(peer, done->number);
    finished++;
}

/* Make the next packet that is due. */
static bool make(struct peer *peer) {
    if (peer->can_do) {
        header(peer, CAN_DO, strlen(load.function));
        put(peer, load.function, strlen(load.function));
        peer->can_do = false;
    } else if (peer->due) {
        result(peer);
    } else if (peer->grabs) {
        header(peer, GRAB_JOB, 0);
        peer->grabs--;
        peer->grabbing++;
    } else if (peer->sleep) {
        header(peer, PRE_SLEEP, 0);
        peer->sleep = false;
    } else if (peer->echo) {
        header(peer, ECHO_REQ, 0);
        peer->echo = false;
    } else if (peer->submissions) {
        peer->submissions--;
        submission(peer);
    } else {
        return false;
    }
    return true;
}

static void watch(struct peer *peer, bool writable, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = peer};
    peer->waits_to_write = writable;
    if (epoll_ctl(poller, operation, peer->fd, &event)) fail("epoll_ctl", strerror(errno));
}

/* Connect, and say who it is. */
static void reach(struct peer *peer) {
    int on = 1;
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (peer->fd < 0) fail("socket", strerror(errno));
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(peer->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connect", strerror(errno));
    peer->written = peer->made = 0;
    peer->can_do = peer->works;
    peer->sleep = peer->works && only_sleeps;
    peer->echo = true;
    watch(peer, true, EPOLL_CTL_ADD);
}

/* A server with a short queue of new connections resets some that wait for a minute: then they try again. */
static void closed(struct peer *peer, int error) {
    if (error != ECONNRESET || peer->has_answer) fail("the server closed a connection", strerror(error));
    close(peer->fd);
    reach(peer);
}

static void flush(struct peer *peer) {
    for (;;) {
        if (!peer->filler) {
            if (peer->written == peer->made) peer->written = peer->made = 0;
            while (!peer->filler && peer->made < BATCH && make(peer)) {}
        }
        if (peer->written == peer->made && !peer->filler) break;
        struct iovec parts[2] = {
            {peer->output + peer->written, peer->made - peer->written}, {filler, peer->filler}};
        ssize_t sent = writev(peer->fd, parts, 2);
        if (sent < 0 && errno != EAGAIN) {
            closed(peer, errno);
            return;
        }
        if (sent < 0) break;
        size_t of_output = (size_t)sent < parts[0].iov_len ? (size_t)sent : parts[0].iov_len;
        peer->written += of_output;
        peer->filler -= sent - of_output;
    }
    bool is_full = peer->filler || peer->written < peer->made;
    if (is_full != peer->waits_to_write) watch(peer, is_full, EPOLL_CTL_MOD);
}

/* Packets in */

static void submit(struct peer *peer) {
    static long handed_out; /* jobs that a client has taken upon itself */
    while (peer->in_flight < load.depth && handed_out < load.jobs) {
        handed_out++;
        peer->in_flight++;
        peer->submissions++;
    }
}

static void next_job(struct peer *peer) {
    peer->in_flight--;
    submit(peer);
}

static void assigned(struct peer *peer, const char *body, size_t length) {
    struct result *next = &peer->results[(peer->first + peer->due++) % load.grabs];
    const char *end = memchr(body, 0, length);
    size_t handle = end ? (size_t)(end - body) : sizeof next->handle;
    size_t before = handle + 1 + strlen(load.function) + 1;
    if (handle >= sizeof next->handle || length < before + NUMBER) fail("a job cannot be read", "");
    memcpy(next->handle, body, handle);
    next->length = handle;
    memcpy(next->number, body + before, NUMBER);
    peer->grabbing--;
    peer->grabs++;
}

static void has_result(struct peer *peer, const char *body, size_t length) {
    const char *end = memchr(body, 0, length);
    char digits[NUMBER + 1] = "";
    if (!end || end + 1 + NUMBER > body + length) fail("a result cannot be read", "");
    long number = atol(memcpy(digits, end + 1, NUMBER));
    if (number >= load.jobs) fail("a result has an unknown number", digits);
    took[times++] = seconds(CLOCK_MONOTONIC) - began[number];
    completed++;
    next_job(peer);
}

static void handle(struct peer *peer, uint32_t type, const char *body, size_t length) {
    switch (type) {
    case JOB_CREATED:
        created++;
        if (background) next_job(peer);
        break;
    case WORK_COMPLETE: has_result(peer, body, length); break;
    case JOB_ASSIGN: assigned(peer, body, length); break;
    case NO_JOB:
        if (--peer->grabbing == 0 && !peer->grabs && !peer->due) {
            peer->sleep = true;
            asleep++;
        }
        break;
    case NOOP:
        if (peer->grabbing || peer->grabs) break; /* it is awake */
        asleep--;
        peer->grabs = load.grabs;
        break;
    case ECHO_RES: echoed++; break;
    case ERROR: fail("the server answered with an error", body + strnlen(body, length) + 1); break;
    default: fail("the server sent a packet that was not expected", "");
    }
}

static void keep(struct peer *peer, const char *bytes, size_t length) {
    peer->kept = length;
    if (length && !(peer->partial = realloc(peer->partial, length))) fail("no memory", "");
    if (length) memcpy(peer->partial, bytes, length);
}

/* Handle the packets that are complete, and keep the beginning of the next one. */
static void parse(struct peer *peer, const char *bytes, size_t length) {
    size_t used = 0;
    while (length - used >= HEADER) {
        uint32_t fields[3];
        memcpy(fields, bytes + used, sizeof fields);
        const char *body = bytes + used + HEADER;
        size_t size = ntohl(fields[2]), there = length - used - HEADER;
        if (there < size && (size <= LARGE || there < START)) break;
        if (there < size) {
            keep(peer, bytes + used, HEADER + START);
            peer->dropping = size - there;
            return;
        }
        handle(peer, ntohl(fields[1]), body, size);
        used += HEADER + size;
    }
    keep(peer, bytes + used, length - used);
}

static void receive(struct peer *peer) {
    if (peer->dropping) {
        ssize_t dropped = recv(peer->fd, NULL, peer->dropping, MSG_TRUNC);
        if (dropped < 0 && errno == EAGAIN) return;
        if (dropped <= 0) fail("the server closed a connection", dropped ? strerror(errno) : "");
        if ((peer->dropping -= dropped)) return;
        uint32_t type;
        memcpy(&type, peer->partial + 4, sizeof type);
        peer->kept = 0;
        handle(peer, ntohl(type), peer->partial + HEADER, START);
        return;
    }
    if (peer->kept) memcpy(input, peer->partial, peer->kept);
    ssize_t got = recv(peer->fd, input + peer->kept, INPUT - peer->kept, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        closed(peer, got ? errno : 0);
        return;
    }
    peer->has_answer = true;
    parse(peer, input, peer->kept + got);
}

static void wait_for(const long *counter, long target, const long *other, long other_target) {
    while (*counter < target || *other < other_target) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, PATIENCE);
        if (count == 0) fail("the server has been silent for too long", "");
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (events[i].events & ~EPOLLOUT) receive(peer);
            flush(peer);
        }
    }
}

/* Connections */

static struct peer *connected(long count, bool works) {
    struct peer *peers = calloc(count, sizeof *peers);
    size_t room = BATCH + LARGE + 1024;
    char *outputs = malloc(count * room); /* not touched by connections that say little */
    struct result *results = works ? calloc(count * load.grabs, sizeof *results) : NULL;
    if (!peers || !outputs || (works && !results)) fail("no memory", "");
    for (long i = 0; i < count; i++) {
        peers[i].works = works;
        peers[i].output = outputs + i * room;
        peers[i].results = works ? results + i * load.grabs : NULL;
        reach(&peers[i]);
    }
    return peers;
}

static void settle(long count) { /* connections just made have done their first round trip */
    long all = echoed + count;
    wait_for(&echoed, all, &echoed, all);
}

/* Phases and figures */

static struct { double wall, server, own; long memory; } at;
static const char *comma = "";

static void begin(void) {
    at.memory = resident();
    at.own = seconds(CLOCK_PROCESS_CPUTIME_ID);
    at.server = seconds(server_clock);
    at.wall = seconds(CLOCK_MONOTONIC);
}

static void end(const char *phase) {
    double wall = seconds(CLOCK_MONOTONIC) - at.wall, cpu = seconds(server_clock) - at.server;
    double own = seconds(CLOCK_PROCESS_CPUTIME_ID) - at.own;
    printf("%s\"%s\": {\"seconds\": %.6f, \"server_cpu\": %.6f, \"own_cpu\": %.6f, ", comma, phase, wall, cpu, own);
    printf("\"memory_before\": %ld, \"memory_after\": %ld}", at.memory, resident());
    comma = ", ";
}

static int compare(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static void latency(void) {
    static const struct { const char *name; double share; } quantiles[] = {
        {"p50", .5}, {"p90", .9}, {"p99", .99}, {"p99.9", .999}, {"max", 1}};
    qsort(took, times, sizeof *took, compare);
    printf(", \"latency_us\": {");
    for (int i = 0; i < 5; i++) {
        long place = quantiles[i].share * times;
        double figure = took[place < times ? place : times - 1] * 1e6;
        printf("%s\"%s\": %.1f", i ? ", " : "", quantiles[i].name, figure);
    }
    printf("}");
}

static void start(struct peer *clients) {
    for (long i = 0; i < load.clients; i++) {
        submit(&clients[i]);
        flush(&clients[i]);
    }
}

static void grab(struct peer *workers) {
    for (long i = 0; i < load.workers; i++) {
        workers[i].grabs = load.grabs;
        flush(&workers[i]);
    }
}

static struct peer *awake(void) { /* workers, connected */
    struct peer *workers = connected(load.workers, true);
    settle(load.workers);
    return workers;
}

static struct peer *callers(void) {
    struct peer *clients = connected(load.clients, false);
    settle(load.clients);
    return clients;
}

static void calls(void) {
    grab(awake());
    struct peer *clients = callers();
    wait_for(&asleep, load.workers, &asleep, load.workers);
    begin();
    start(clients);
    wait_for(&completed, load.jobs, &completed, load.jobs);
    end("calls");
    latency();
}

static void enqueue(void) {
    background = true;
    struct peer *clients = callers();
    begin();
    start(clients);
    wait_for(&created, load.jobs, &created, load.jobs);
    end("enqueue");
}

static void drain(void) {
    enqueue();
    struct peer *workers = awake();
    begin();
    grab(workers);
    wait_for(&finished, load.jobs, &asleep, load.workers);
    end("drain");
}

static void stream(void) {
    background = true;
    grab(awake());
    struct peer *clients = callers();
    begin();
    start(clients);
    wait_for(&created, load.jobs, &finished, load.jobs);
    end("stream");
}

static void wake(void) {
    grab(awake());
    struct peer *client = callers();
    wait_for(&asleep, load.workers, &asleep, load.workers);
    long jobs = load.jobs;
    begin();
    for (load.jobs = 1; load.jobs <= jobs; load.jobs++) { /* the next job when all sleep again */
        submit(client);
        flush(client);
        wait_for(&completed, load.jobs, &asleep, load.workers);
    }
    end("wake");
    latency();
}

static void idle(void) {
    begin();
    only_sleeps = true;
    connected(load.workers, true);
    settle(load.workers);
    end("idle");
}

int main(int count, char **words) {
    static const struct { const char *name; void (*run)(void); } kinds[] = {
        {"calls", calls}, {"enqueue", enqueue}, {"drain", drain}, {"stream", stream}, {"wake", wake}, {"idle", idle}};
    static const struct { const char *name; long *value; } options[] = {
        {"clients", &load.clients}, {"depth", &load.depth}, {"workers", &load.workers}, {"grabs", &load.grabs},
        {"payload", &load.payload}, {"jobs", &load.jobs}, {"unique", &load.unique}};
    if (count < 4) fail("usage", "load PORT PID KIND [NAME=NUMBER ...] [function=NAME]");
    address.sin_port = htons(atoi(words[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server = atoi(words[2]);
    if (clock_getcpuclockid(server, &server_clock)) fail("there is no process", words[2]);
    for (int i = 4; i < count; i++) {
        char *value = strchr(words[i], '=');
        bool is_known = false;
        if (!value) fail("not NAME=VALUE", words[i]);
        *value++ = 0;
        for (size_t k = 0; k < sizeof options / sizeof *options; k++)
            if (!strcmp(options[k].name, words[i])) *options[k].value = atol(value), is_known = true;
        if (!strcmp("function", words[i])) load.function = value, is_known = true;
        if (!is_known) fail("no such option", words[i]);
    }
    if (load.payload < NUMBER || strlen(load.function) > 64) fail("a payload or a function does not fit", "");
    poller = epoll_create1(0);
    began = calloc(load.jobs + 1, sizeof *began);
    took = calloc(load.jobs + 1, sizeof *took);
    filler = calloc(1, load.payload);
    input = malloc(INPUT);
    if (!began || !took || !filler || !input) fail("no memory", "");
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (!strcmp(kinds[k].name, words[3])) {
            printf("{");
            kinds[k].run();
            puts("}");
            return 0;
        }
    fail("no such kind of load", words[3]);
}
