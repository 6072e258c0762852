/*
 * Numbered messages over UDP both ways, each byte checked where it arrives.
 *
 *   guest-flow ADDRESS FLOWS MICROSECONDS
 *
 * Flow n is between port 6000 + n here and there; on each a message is sent every so many
 * microseconds. It continues in the background, whose process id is printed, until SIGTERM. When
 * nothing has come for two seconds then, /tmp/flow says what was sent and what has come, in the
 * order of arrival, as runs of numbers that follow each other:
 *
 *   flow N sent COUNT damaged COUNT
 *   run FIRST LAST
 *
 * The other end, and what a message is, are in tests/machine/common/flows.rs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FLOWS_MAX 16
#define RUNS_MAX 4096
#define TO_GUEST 0
#define FROM_GUEST 1
/* Microseconds; a loaded host may hold the last messages up for longer than one second. */
#define SILENCE 2000000

struct flow {
	uint32_t sent, damaged, runs;
	uint32_t run[RUNS_MAX][2];
};

static struct flow flows[FLOWS_MAX];
static struct pollfd sockets[FLOWS_MAX];
static volatile sig_atomic_t ended;

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000LL + time.tv_nsec / 1000;
}

/* A message is all that its direction, flow and number say; it is a multiple of 8 bytes long. */
static size_t make(uint64_t *words, uint32_t direction, uint32_t flow, uint32_t number)
{
	size_t count = 8 + (number * 7 + flow * 3) % 175;
	uint64_t state;

	words[0] = (uint64_t)number << 32 | flow << 8 | direction;
	state = (words[0] * 0x9e3779b97f4a7c15) | 1;
	for (size_t i = 1; i < count; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		words[i] = state;
	}
	return count * 8;
}

static void send_one(int n)
{
	uint64_t words[256];
	size_t length = make(words, FROM_GUEST, n, flows[n].sent);

	/* An error may be that of a message before; this one was not sent, and goes next time. */
	if (send(sockets[n].fd, words, length, MSG_DONTWAIT) >= 0)
		flows[n].sent++;
}

static void receive_one(int n)
{
	struct flow *flow = &flows[n];
	uint64_t words[256], right[256];
	ssize_t length = recv(sockets[n].fd, words, sizeof(words), MSG_DONTWAIT);
	uint32_t number;

	if (length < 0)
		return;
	number = words[0] >> 32;
	if (length < 8 || (size_t)length != make(right, TO_GUEST, n, number) ||
	    memcmp(words, right, length)) {
		flow->damaged++;
		return;
	}
	if (flow->runs && flow->run[flow->runs - 1][1] + 1 == number) {
		flow->run[flow->runs - 1][1]++;
	} else if (flow->runs < RUNS_MAX) {
		flow->run[flow->runs][0] = flow->run[flow->runs][1] = number;
		flow->runs++;
	} else {
		flow->damaged++;
	}
}

static int open_socket(const char *to, int n)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(6000 + n) };
	struct sockaddr_in there = here;
	int size = 8 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	if (inet_pton(AF_INET, to, &there.sin_addr) != 1 ||
	    bind(fd, (struct sockaddr *)&here, sizeof(here)) != 0 ||
	    connect(fd, (struct sockaddr *)&there, sizeof(there)) != 0) {
		perror("guest-flow");
		exit(1);
	}
	return fd;
}

/* Receives for so long, or until there was nothing for so long. */
static void receive(int count, int64_t until)
{
	for (int64_t left; (left = until - now()) > 0;) {
		struct timespec timeout = { .tv_nsec = left * 1000 };

		if (ppoll(sockets, count, &timeout, NULL) <= 0)
			continue;
		for (int n = 0; n < count; n++)
			if (sockets[n].revents)
				receive_one(n);
		if (ended)
			until = now() + SILENCE;
	}
}

static void report(int count)
{
	FILE *file = fopen("/tmp/flow.part", "w");

	for (int n = 0; n < count; n++) {
		fprintf(file, "flow %d sent %u damaged %u\n", n, flows[n].sent, flows[n].damaged);
		for (uint32_t i = 0; i < flows[n].runs; i++)
			fprintf(file, "run %u %u\n", flows[n].run[i][0], flows[n].run[i][1]);
	}
	fclose(file);
	rename("/tmp/flow.part", "/tmp/flow");
}

int main(int argc, char **argv)
{
	int count = argc == 4 ? atoi(argv[2]) : 0;
	int64_t every = argc == 4 ? atoll(argv[3]) : 0;
	pid_t id;

	if (count < 1 || count > FLOWS_MAX || every < 1 || every > 999999) {
		fprintf(stderr, "usage: guest-flow ADDRESS FLOWS MICROSECONDS\n");
		return 2;
	}
	for (int n = 0; n < count; n++)
		sockets[n] = (struct pollfd){ .fd = open_socket(argv[1], n), .events = POLLIN };
	unlink("/tmp/flow");
	signal(SIGTERM, end);
	id = fork();
	if (id != 0) {
		printf("%d\n", id);
		return id < 0;
	}
	while (!ended) {
		int64_t next = now() + every;

		for (int n = 0; n < count; n++)
			send_one(n);
		receive(count, next);
	}
	receive(count, now() + SILENCE);
	report(count);
	return 0;
}
