// Builds a list, walks it, and ends with all of it reachable: for a sanitizer that looks through all memory at exit.
//
//     leaks NODES [KIB]
//
// With KIB it goes on only when no more than that of its memory is resident.
//
// Built with -fsanitize=address it stops all threads at its end, and a helper process goes over the memory meanwhile.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct node {
	struct node *next;
	uint64_t value;
	char pad[200];
};

static unsigned long resident(void)
{
	char line[128];
	unsigned long kib = 0;
	FILE *status = fopen("/proc/self/status", "r");
	while (status && fgets(line, sizeof line, status))
		if (sscanf(line, "RssAnon: %lu kB", &kib) == 1)
			break;
	if (status)
		fclose(status);
	return kib;
}

int main(int argc, char **argv)
{
	static struct node *head;
	uint64_t sum = 0;
	size_t nodes = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
	for (size_t i = 0; i < nodes; i++) {
		struct node *node = malloc(sizeof *node);
		if (!node)
			return 2;
		node->next = head;
		node->value = i * 2654435761u;
		memset(node->pad, (int)i, sizeof node->pad);
		head = node;
	}
	while (argc > 2 && resident() > strtoul(argv[2], NULL, 10))
		usleep(1000);
	for (int round = 0; round < 3; round++)
		for (struct node *node = head; node; node = node->next)
			sum += node->value ^ (unsigned char)node->pad[round];
	printf("%lu\n", (unsigned long)sum);
	return 0;
}
