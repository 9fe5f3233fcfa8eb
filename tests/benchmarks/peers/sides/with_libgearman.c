/* libgearman's blocking client, for one row: background jobs, one at a time.
 *
 * The library is there wherever gearman's tools are; its headers often are not, so what is used of it is
 * declared here as in libgearman-1.0/client.h.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct gearman_client_st gearman_client_st;
typedef int gearman_return_t;
typedef uint16_t in_port_t;

gearman_client_st *gearman_client_create(gearman_client_st *client);
gearman_return_t gearman_client_add_server(gearman_client_st *client, const char *host, in_port_t port);
gearman_return_t gearman_client_do_background(gearman_client_st *client, const char *function,
                                              const char *unique, const void *workload, size_t size,
                                              char *job_handle);

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    char *broker = getenv("PEERS_BROKER"), *colon = broker ? strrchr(broker, ':') : NULL;
    if (argc != 3 || strcmp(argv[1], "submit") || !colon) {
        fprintf(stderr, "usage: PEERS_BROKER=host:port %s submit COUNT\n", argv[0]);
        return 2;
    }
    *colon = 0;
    gearman_client_st *client = gearman_client_create(NULL);
    if (client == NULL || gearman_client_add_server(client, broker, atoi(colon + 1))) return 1;
    char handle[128];
    double began = now(), last = began;
    printf("{\"began\": %.9f, \"seconds\": [", began);
    for (int count = atoi(argv[2]); count > 0; count--) {
        if (gearman_client_do_background(client, "noop", NULL, "1", 1, handle)) return 1;
        double after = now();
        printf("%.9f%s", after - last, count > 1 ? ", " : "]}\n");
        last = after;
    }
    return 0;
}
