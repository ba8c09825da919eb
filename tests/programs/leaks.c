// Builds a list, walks it, and ends with all of it reachable: for a sanitizer that looks through all memory at exit.
//
//     leaks NODES
//
// Built with -fsanitize=address it stops all threads at its end, and a helper process goes over the memory meanwhile.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node {
	struct node *next;
	uint64_t value;
	char pad[200];
};

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
	for (int round = 0; round < 3; round++)
		for (struct node *node = head; node; node = node->next)
			sum += node->value ^ (unsigned char)node->pad[round];
	printf("%lu\n", (unsigned long)sum);
	return 0;
}
