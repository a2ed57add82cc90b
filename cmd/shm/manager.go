package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shmkit/shm/manager"
)

func serveCommand() *cobra.Command {
	var f managerFlags
	cmd := &cobra.Command{
		Use:   "serve ADDRESS",
		Short: "Keep blocks for other processes",
		Long: `Serve keeps blocks for the programs that connect to ADDRESS by manager.Dial of
the Go package, until Ctrl-C or SIGTERM, which end it with exit status 0. It
prints "serving ADDRESS" when they can. ADDRESS is the path of a Unix socket to
make, or @ and a name without a file (not on macOS). On Windows it is @ and the
name of a pipe, or \\.\pipe\ and that name.

A block stays until a client releases it or serve ends, and then goes. Nothing
of it is in /dev/shm, so nothing is left behind however serve ends. Clients that
are attached keep the memory until they detach.

Only the user who runs serve, and root, may connect, unless others are allowed.`,
		Example: `  shm serve /run/user/1000/shm.sock
  SHM_MANAGER=/run/user/1000/shm.sock ./worker`,
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.listen(args[0])
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "serving", args[0]); err != nil {
				l.Close()
				return fileError{err}
			}
			return manager.Serve(ctx, l, f.options()...)
		},
	}
	f.add(cmd)
	return cmd
}

func runCmdCommand() *cobra.Command {
	var f managerFlags
	var addr string
	cmd := &cobra.Command{
		Use:   "run -- CMD...",
		Short: "Run a job with blocks of its own",
		Long: `Run runs CMD with a manager beside it, as "shm serve" is one, that CMD and its
children find by the environment variable SHM_MANAGER: manager.Dial(ctx, "") of
the Go package connects to it. When CMD ends, so do the manager and all blocks.

Run exits as CMD does: 126 or 127 if CMD could not be started, 128 and the number
of the signal if one ended it. If run itself is killed, CMD is killed as well (on
Linux, unless CMD has changed its user; on Windows with all it has started), and
no block is left.

` + signalHelp,
		Example: `  shm run -- ./pipeline.sh
  shm run --max-bytes 8GiB -- make -j8 test`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 {
				return errors.New(`no "--" before the command`)
			}
			if len(args) == 0 {
				return errors.New("no command after --")
			}
			return nil
		},
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, l, remove, err := f.listenAnywhere(addr)
			if err != nil {
				return err
			}
			defer remove()
			ctx, cancel := context.WithCancel(cmd.Context())
			served := make(chan error, 1)
			go func() { served <- manager.Serve(ctx, l, f.options()...) }()
			var survive func()
			err = runCommand(args, func(c *exec.Cmd) {
				c.Env = append(c.Environ(), manager.Env+"="+addr)
				survive = dieWithUs(c)
			})
			survive() // what CMD has left behind
			cancel()
			if serveErr := <-served; err == nil {
				err = serveErr
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&addr, "address", "", "the address of the manager; the default is one without a file, on macOS a file in TMPDIR or /tmp")
	return cmd
}

// managerFlags say for whom a manager is and how much it gives.
type managerFlags struct {
	clients, blocks, clientBlocks int
	bytes, clientBytes            byteSize
	allow, allowRead              []int
}

func (f *managerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&f.clients, "max-clients", 1000, "connections at one time")
	flags.IntVar(&f.blocks, "max-blocks", 10000, "blocks at one time")
	flags.Var(&f.bytes, "max-bytes", "memory of all blocks (default half of the machine's)")
	flags.IntVar(&f.clientBlocks, "client-blocks", 0, "blocks that one connection may create (default no limit of its own)")
	flags.Var(&f.clientBytes, "client-bytes", "memory of the blocks that one connection may create (default no limit of its own)")
	flags.IntSliceVar(&f.allow, "allow", nil, "ids of other users who may connect")
	flags.IntSliceVar(&f.allowRead, "allow-read", nil, "ids of other users who may connect, and only read (on macOS only list)")
}

func (f *managerFlags) options() []manager.ServeOption {
	opts := []manager.ServeOption{
		manager.MaxClients(f.clients),
		manager.PerClient(manager.Quota{Blocks: f.clientBlocks, Bytes: int64(f.clientBytes)}),
		manager.Total(manager.Quota{Blocks: f.blocks, Bytes: int64(f.bytes)}),
	}
	if f.others() {
		opts = append(opts, manager.Authorize(f.access))
	}
	return opts
}

func (f *managerFlags) others() bool { return len(f.allow)+len(f.allowRead) > 0 }

func (f *managerFlags) access(p manager.Peer) manager.Access {
	switch {
	case p.UID == 0, p.UID == os.Geteuid(), slices.Contains(f.allow, p.UID):
		return manager.FullAccess
	case slices.Contains(f.allowRead, p.UID):
		return manager.ReadAccess
	}
	return manager.NoAccess
}

// listen makes the socket, which others can reach if any of them are allowed.
func (f *managerFlags) listen(addr string) (net.Listener, error) {
	if f.others() && runtime.GOOS == "windows" {
		return nil, usageError{errors.New("users have no ids on Windows to be allowed by")}
	}
	if addr == "" {
		return nil, usageError{errors.New("empty address")}
	}
	l, err := manager.Listen(addr)
	if most := len(syscall.RawSockaddrUnix{}.Path) - 1; errors.Is(err, syscall.EINVAL) && len(addr) > most {
		return nil, hintError{fileError{err}, fmt.Sprintf("%d bytes, the longest address has %d", len(addr), most)}
	}
	if err != nil {
		return nil, fileError{err}
	}
	if f.others() && !strings.HasPrefix(addr, "@") {
		if err := os.Chmod(addr, 0o666); err != nil {
			l.Close()
			return nil, fileError{err}
		}
	}
	return l, nil
}

// listenAnywhere is listen, at an address of its own if none is given: without a
// file, so that nothing is left whatever happens, or where the system has no
// such, in a directory that remove removes.
func (f *managerFlags) listenAnywhere(given string) (addr string, l net.Listener, remove func(), err error) {
	remove = func() {}
	if given != "" {
		l, err = f.listen(given)
		return given, l, remove, err
	}
	addr = "@shm-run-" + strings.ToLower(rand.Text())
	if l, err = f.listen(addr); !errors.Is(err, errors.ErrUnsupported) {
		return addr, l, remove, err
	}
	tmp := os.TempDir()
	if len(tmp) > 70 { // the path of a socket has hardly more than 100 bytes
		tmp = "/tmp"
	}
	dir, err := os.MkdirTemp(tmp, "shm-run-")
	if err != nil {
		return "", nil, nil, fileError{err}
	}
	remove = func() { os.RemoveAll(dir) }
	if f.others() {
		os.Chmod(dir, 0o711)
	}
	addr = filepath.Join(dir, "socket")
	if l, err = f.listen(addr); err != nil {
		remove()
	}
	return addr, l, remove, err
}
