// Looks a name up in one family and prints its addresses.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	addresses, err := net.DefaultResolver.LookupIP(context.Background(), "ip"+os.Args[2], os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, address := range addresses {
		fmt.Println(address)
	}
}
