/*
 * Sends back, on port 7, what it gets by UDP and TCP (RFC 862). One datagram is answered by one
 * datagram, whatever its size: what busybox offers cuts them at 4 KiB.
 */
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65536];

static int open_socket(int type)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(7) };
	int on = 1, fd = socket(AF_INET, type, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
		perror("guest-echo: bind");
		exit(1);
	}
	return fd;
}

static void echo_datagram(int fd)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);
	ssize_t length = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&peer, &size);

	if (length >= 0)
		sendto(fd, buffer, length, 0, (struct sockaddr *)&peer, size);
}

static void echo_connection(int fd)
{
	ssize_t length;

	while ((length = read(fd, buffer, sizeof(buffer))) > 0)
		for (ssize_t sent = 0, n; sent < length; sent += n)
			if ((n = write(fd, buffer + sent, length - sent)) <= 0)
				exit(1);
	exit(0);
}

int main(void)
{
	struct pollfd sockets[2] = {
		{ .fd = open_socket(SOCK_DGRAM), .events = POLLIN },
		{ .fd = open_socket(SOCK_STREAM), .events = POLLIN },
	};

	signal(SIGCHLD, SIG_IGN);
	listen(sockets[1].fd, 8);
	while (poll(sockets, 2, -1) > 0) {
		if (sockets[0].revents)
			echo_datagram(sockets[0].fd);
		if (sockets[1].revents) {
			int connection = accept(sockets[1].fd, NULL, NULL);

			if (fork() == 0)
				echo_connection(connection);
			close(connection);
		}
	}
	return 1;
}
