/*
 * Streams of known bytes over TCP, one way, each byte checked where it arrives.
 *
 *   guest-stream serve               on port 9, IPv4 and IPv6: checks what comes, answers
 *   guest-stream send ADDRESS BYTES  sends, and succeeds if the other end has found all right
 *
 * The sender shuts its side down; the answer is "good COUNT" or "bad at COUNT". The bytes are those
 * of `pattern` in tests/machine/common/traffic.rs with seed 1.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT 9

static unsigned char buffer[65536], expected[65536];
static uint64_t state = 0x9e3779b97f4a7c15;

static void next_bytes(unsigned char *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		bytes[i] = state >> 24;
	}
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* Both families by one: IPv4 is ::ffff:a.b.c.d. */
static struct sockaddr_in6 parse(const char *text)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(PORT) };
	char mapped[64];

	snprintf(mapped, sizeof(mapped), "%s%s", strchr(text, ':') ? "" : "::ffff:", text);
	if (inet_pton(AF_INET6, mapped, &address.sin6_addr) != 1) {
		fprintf(stderr, "guest-stream: %s is no address\n", text);
		exit(2);
	}
	return address;
}

static void check_connection(int fd)
{
	unsigned long count = 0;
	ssize_t length;

	while ((length = read(fd, buffer, sizeof(buffer))) > 0) {
		next_bytes(expected, length);
		if (memcmp(buffer, expected, length) != 0) {
			dprintf(fd, "bad at %lu", count);
			exit(1);
		}
		count += length;
	}
	dprintf(fd, "good %lu", count);
	exit(0);
}

static int serve(void)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(PORT) };
	int on = 1, fd = socket(AF_INET6, SOCK_STREAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 8) != 0)
		fail("guest-stream: listen");
	signal(SIGCHLD, SIG_IGN);
	for (int connection; (connection = accept(fd, NULL, NULL)) >= 0; close(connection))
		if (fork() == 0)
			check_connection(connection);
	return 1;
}

static int send_stream(const char *to, unsigned long bytes)
{
	struct sockaddr_in6 address = parse(to);
	int fd = socket(AF_INET6, SOCK_STREAM, 0);
	char answer[64] = "", wanted[64];
	ssize_t n;

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		fail("guest-stream: connect");
	for (unsigned long left = bytes; left > 0;) {
		size_t count = left < sizeof(buffer) ? left : sizeof(buffer);

		next_bytes(buffer, count);
		for (size_t sent = 0; sent < count;) {
			n = write(fd, buffer + sent, count - sent);
			if (n <= 0)
				fail("guest-stream: write");
			sent += n;
		}
		left -= count;
	}
	shutdown(fd, SHUT_WR);
	for (size_t got = 0; got < sizeof(answer) - 1; got += n)
		if ((n = read(fd, answer + got, sizeof(answer) - 1 - got)) <= 0)
			break;
	puts(answer);
	snprintf(wanted, sizeof(wanted), "good %lu", bytes);
	return strcmp(answer, wanted) != 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "serve") == 0)
		return serve();
	if (argc == 4 && strcmp(argv[1], "send") == 0)
		return send_stream(argv[2], strtoul(argv[3], NULL, 10));
	fprintf(stderr, "usage: guest-stream serve | send ADDRESS BYTES\n");
	return 2;
}
