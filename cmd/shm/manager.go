package main

import (
	"cmp"
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
		Short: "Serve blocks to other processes",
		Long: `Serve is a manager: it keeps blocks for the programs that connect to ADDRESS by
manager.Dial of the Go package, until Ctrl-C or SIGTERM, on which it exits with
status 0. It prints "serving ADDRESS" when it accepts connections. ADDRESS is the
path of a Unix socket to create, or @ and a name without a file (not on macOS). On
Windows it is @ and the name of a pipe, or \\.\pipe\ and that name.

A block stays until a client releases it or serve exits. It has no name in
/dev/shm, so that nothing is left behind even if serve is killed. Clients that are
attached keep the memory until they detach.

Only root and the user who runs serve may connect, unless others are allowed.`,
		Example: `  shm serve /run/user/1000/shm.sock
  SHM_MANAGER=/run/user/1000/shm.sock ./worker`,
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
		Short: "Run a command with blocks of its own",
		Long: `Run runs CMD and, beside it, a manager like that of "shm serve". CMD and its
children find it by the environment variable SHM_MANAGER: manager.Dial(ctx, "")
of the Go package connects to it. The manager and all its blocks end with CMD. On
Linux its default address cannot be reached from another network namespace, such
as that of a container: use --address there.

If run itself is killed, no block is left, and CMD is killed as well: on Linux
unless it has changed its credentials, as sudo, su and set-user-ID programs do; on
Windows with all that it has started; not on macOS.

` + commandHelp,
		Example: `  shm run -- ./pipeline.sh
  shm run --max-bytes 8GiB -- make -j8 test`,
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, dir, l, err := f.listenAnywhere(addr)
			defer os.RemoveAll(dir)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			served := begin(func() error { return manager.Serve(ctx, l, f.options()...) })
			c := exec.Command(args[0], args[1:]...)
			c.Env = append(c.Environ(), manager.Env+"="+addr)
			survive := dieWithUs(c)
			err = runCommand(c)
			survive()
			cancel()
			return cmp.Or(err, <-served)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&addr, "address", "", "address of the manager (default one without a file, on macOS a file in TMPDIR or /tmp)")
	return cmd
}

// managerFlags are the users and the limits of a manager.
type managerFlags struct {
	clients, blocks, clientBlocks int
	bytes, clientBytes            byteSize
	allow, allowRead              []int
}

func (f *managerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&f.clients, "max-clients", 1000, "connections at one time; another user may have a quarter of them, all other users three quarters")
	flags.IntVar(&f.blocks, "max-blocks", 10000, "blocks at one time")
	flags.Var(&f.bytes, "max-bytes", "memory of all blocks (default half of that of the machine)")
	flags.IntVar(&f.clientBlocks, "client-blocks", 0, "blocks that one connection may create (default unlimited)")
	flags.Var(&f.clientBytes, "client-bytes", "memory of the blocks that one connection may create (default unlimited)")
	flags.IntSliceVar(&f.allow, "allow", nil, "ids of other users who may connect")
	flags.IntSliceVar(&f.allowRead, "allow-read", nil, "ids of other users who may connect but only read (on macOS only list)")
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

// listen creates the socket, which other users can reach if any are allowed.
func (f *managerFlags) listen(addr string) (net.Listener, error) {
	if f.others() && runtime.GOOS == "windows" {
		return nil, usageError{errors.New("--allow and --allow-read are not supported on Windows, where users have no ids")}
	}
	if addr == "" {
		return nil, usageError{errors.New("empty address")}
	}
	l, err := manager.Listen(addr)
	if err == nil && f.others() && !strings.HasPrefix(addr, "@") {
		if err = os.Chmod(addr, 0o666); err != nil {
			l.Close()
		}
	}
	if most := len(syscall.RawSockaddrUnix{}.Path) - 1; errors.Is(err, syscall.EINVAL) && len(addr) > most {
		return nil, hintError{fileError{err}, fmt.Sprintf("%d bytes, the longest address has %d", len(addr), most)}
	}
	return l, aboutFile(err)
}

// listenAnywhere listens on the given address, or if that is empty on a new one:
// an address without a file, so that a kill leaves nothing behind, or if the system
// has no such addresses, a socket in the new directory dir, which the caller removes.
func (f *managerFlags) listenAnywhere(given string) (addr, dir string, l net.Listener, err error) {
	if given != "" {
		l, err = f.listen(given)
		return given, "", l, err
	}
	addr = "@shm-run-" + strings.ToLower(rand.Text())
	if l, err = f.listen(addr); !errors.Is(err, errors.ErrUnsupported) {
		return addr, "", l, err
	}
	tmp := os.TempDir()
	if len(tmp) > 70 { // the path of a socket has little more than 100 bytes
		tmp = "/tmp"
	}
	if dir, err = os.MkdirTemp(tmp, "shm-run-"); err != nil {
		return "", "", nil, fileError{err}
	}
	if f.others() {
		os.Chmod(dir, 0o711)
	}
	addr = filepath.Join(dir, "socket")
	l, err = f.listen(addr)
	return addr, dir, l, err
}
