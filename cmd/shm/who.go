package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

func whoCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "who NAME",
		Short: "Show the processes that are attached to a block",
		Long: `Who lists the attachments of a block by process id. A process with several of them
is listed as often. ACCESS is "write", or "read" for one that cannot write or has
only followed or held the block. STARTED is when the process started, which may be
long before it attached.

A process id of another PID namespace, as that of a container, means nothing here:
it is followed by "elsewhere". "ended" is a process that has exited while a child
of it kept the attachment.

On Windows the system knows the number of attachments, not whose they are.`,
		ValidArgsFunction: completeNames(1, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := shm.Stat(args[0])
			if err != nil {
				return err
			}
			holders := []holder{}
			for _, h := range info.Holders {
				holders = append(holders, holderOf(h))
			}
			slices.SortStableFunc(holders, func(a, b holder) int { return cmp.Compare(a.PID, b.PID) })
			out := cmd.OutOrStdout()
			switch {
			case len(holders) < info.Refs:
				return fmt.Errorf("%w: %s, and the system does not say whose", errors.ErrUnsupported, english.Plural(info.Refs, "attachment", ""))
			case asJSON:
				return printJSON(out, holders)
			}
			return printHolders(out, holders)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

// holder is an attachment and what the system says of its process.
type holder struct {
	shm.Holder
	processInfo
}

// processInfo is what the system says of a process; its fields are zero where it does
// not tell.
type processInfo struct {
	User    string    `json:"user,omitempty"`
	Command string    `json:"command,omitempty"`
	Started time.Time `json:"started,omitzero"`
}

func holderOf(h shm.Holder) holder {
	if !h.Here || h.Gone {
		return holder{Holder: h}
	}
	return holder{h, findProcess(h.PID)}
}

func (h holder) access() string {
	if h.ReadOnly {
		return "read"
	}
	return "write"
}

// about is the command, or why there is none.
func (h holder) about() string {
	switch {
	case h.Gone:
		return "(ended)"
	case !h.Here:
		return "(elsewhere)"
	}
	return cmp.Or(h.Command, "?")
}

// String is what stat prints.
func (h holder) String() string {
	return strings.Join(strings.Fields(fmt.Sprintf("process %d %s, %s: %s", h.PID, h.User, h.access(), h.about())), " ")
}

func printHolders(w io.Writer, list []holder) error {
	if len(list) == 0 {
		return nil
	}
	t := newTable(1)
	t.AppendHeader(table.Row{"PID", "USER", "ACCESS", "STARTED", "COMMAND"})
	for _, h := range list {
		started := "-"
		if !h.Started.IsZero() {
			started = h.Started.Local().Format(time.DateTime)
		}
		t.AppendRow(table.Row{h.PID, cmp.Or(h.User, "-"), h.access(), started, h.about()})
	}
	return printTable(w, t)
}

// userName returns the name of a user, or the number if it has none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// printable returns s with what a terminal would not print quoted: a process can
// call itself anything.
func printable(s string) string {
	if quoted := strconv.Quote(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}
