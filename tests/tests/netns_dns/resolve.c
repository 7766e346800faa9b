/* Looks a name up in one family and prints its addresses. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct addrinfo hints, *list, *entry;
	char text[INET6_ADDRSTRLEN];
	int error;

	if (argc != 3)
		return 2;
	memset(&hints, 0, sizeof(hints));
	hints.ai_family = strcmp(argv[2], "6") ? AF_INET : AF_INET6;
	hints.ai_socktype = SOCK_STREAM;
	error = getaddrinfo(argv[1], NULL, &hints, &list);
	if (error) {
		printf("%s\n", gai_strerror(error));
		return 1;
	}
	for (entry = list; entry; entry = entry->ai_next) {
		const void *address = entry->ai_family == AF_INET
			? (const void *)&((struct sockaddr_in *)entry->ai_addr)->sin_addr
			: (const void *)&((struct sockaddr_in6 *)entry->ai_addr)->sin6_addr;
		puts(inet_ntop(entry->ai_family, address, text, sizeof(text)));
	}
	return 0;
}
