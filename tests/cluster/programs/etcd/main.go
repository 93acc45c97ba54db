// etcd's own server command; a module of its own because etcd pins other versions of the libraries that Kubernetes shares.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
