// Command sluice-kube is the control plane of a Kubernetes cluster for tests: etcd, the API server, the controller manager
// and kubectl in one binary, chosen by the first argument, so that they share their packages when they are built.
//
// `cargo xtask kube` builds and starts it.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	// Only the chosen command is built: several of them install the one signal handler of a process, and the second panics.
	var command *cobra.Command
	switch os.Args[1] {
	case "etcd":
		etcdmain.Main(os.Args[1:])
		return
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = controllers.NewControllerManagerCommand()
	case "kubectl":
		command = kubectl.NewDefaultKubectlCommand()
	default:
		usage()
	}
	os.Args = os.Args[1:]
	os.Exit(cli.Run(command))
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: sluice-kube etcd|kube-apiserver|kube-controller-manager|kubectl [ARGUMENTS]")
	os.Exit(2)
}
