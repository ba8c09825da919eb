// A Go program, which is linked statically and moves between threads: four goroutines build lists that the collector walks,
// verify them while more garbage is made, and the program executes itself as a child that does the same.
//
// usage: collected MIB [leaf]
// Prints "ok" and exits with 0, or says what is wrong and exits with 1.
package main

import (
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"strconv"
)

const (
	size   = 1000
	makers = 4
)

type node struct {
	next *node
	sum  uint32
	data [size]byte
}

func wrong(what string) {
	fmt.Fprintln(os.Stderr, "collected:", what)
	os.Exit(1)
}

func build(count int, seed uint64) *node {
	var list *node
	for ; count > 0; count-- {
		made := &node{next: list}
		for at := range made.data {
			seed = seed*6364136223846793005 + 1442695040888963407
			made.data[at] = byte(seed>>56) & 0x3f
		}
		made.sum = crc32.ChecksumIEEE(made.data[:])
		list = made
	}
	return list
}

func verify(list *node) (count int) {
	for ; list != nil; list = list.next {
		garbage := append([]byte(nil), list.data[:]...)
		if crc32.ChecksumIEEE(garbage) != list.sum {
			wrong("memory is not what was written")
		}
		count++
	}
	return count
}

func main() {
	if len(os.Args) < 2 {
		wrong("usage")
	}
	mib, err := strconv.Atoi(os.Args[1])
	if err != nil {
		wrong("usage")
	}
	count := mib << 20 / 1024 / makers
	built, begin, verified := make(chan bool), make(chan bool), make(chan bool)
	for maker := 0; maker < makers; maker++ {
		go func(seed uint64) {
			list := build(count, seed)
			built <- true
			<-begin
			if verify(list) != count {
				wrong("a list has lost a part")
			}
			verified <- true
		}(uint64(maker))
	}
	for maker := 0; maker < makers; maker++ {
		<-built
	}
	if len(os.Args) == 2 {
		said, err := exec.Command("/proc/self/exe", os.Args[1], "leaf").CombinedOutput()
		if err != nil || string(said) != "ok\n" {
			wrong(fmt.Sprint("the child: ", err, ": ", string(said)))
		}
	}
	close(begin)
	for maker := 0; maker < makers; maker++ {
		<-verified
	}
	fmt.Println("ok")
}
