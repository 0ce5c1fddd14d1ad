// Command etcd is the unchanged etcd server; its module has no main package that `go build` reaches by version.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
