package pg

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Backup is a base backup: the files of a cluster, without its WAL.
type Backup struct {
	files *Cluster // never started
}

// BaseBackup makes a base backup of a running cluster. It outlives the cluster.
func (c *Cluster) BaseBackup() *Backup {
	c.t.Helper()
	b := &Backup{prepare(c.t, c.Version, c.SegmentSize, false)}
	c.backupTo(b.files)
	return b
}

// Destroy kills the server and deletes its data.
func (c *Cluster) Destroy() {
	c.t.Helper()
	c.kill()
	c.must(os.RemoveAll(c.DataDir))
}

// Restore makes a cluster of a base backup and a directory of received WAL alone, as an administrator does: a copy of the directory
// in which the last segment has lost its .partial is what restore_command reads. It waits until the server has recovered as far as
// the WAL goes, or as conf says (recovery_target_…), and has gone on from there on a timeline of its own.
func (b *Backup) Restore(wal string, conf ...string) *Cluster {
	t := b.files.t
	t.Helper()
	archive := filepath.Join(t.TempDir(), "archive")
	b.files.must(os.Mkdir(archive, 0o755))
	files := List(t, wal)
	names := append(files.Complete, files.History...)
	if n := len(files.Partial); n > 0 {
		names = append(names, files.Partial[n-1]) // of the newest timeline
	}
	for _, name := range names {
		to := filepath.Join(archive, strings.TrimSuffix(name, ".partial"))
		b.files.must(copyFile(filepath.Join(wal, name), to, 0o600))
	}
	return b.RestoreBy(archive, "cp WAL/%f %p", nil, conf...)
}

// RestoreBy is Restore with a restore_command, in which WAL is the path of a copy of the directory with all that is in it, and PROGRAMS that
// of a copy of programs and their libraries: the folders bin and lib of a folder; nil: there are none.
func (b *Backup) RestoreBy(wal, command string, programs []string, conf ...string) *Cluster {
	t := b.files.t
	t.Helper()
	s := prepare(t, b.files.Version, b.files.SegmentSize, false)
	s.must(s.copyData(b.files.DataDir))
	archive, tools := filepath.Join(s.Dir, "archive"), filepath.Join(s.Dir, "tools")
	for _, folder := range []string{archive, tools, filepath.Join(tools, "bin"), filepath.Join(tools, "lib")} {
		s.must(os.Mkdir(folder, 0o755))
	}
	entries, err := os.ReadDir(wal)
	s.must(err)
	for _, entry := range entries {
		to := filepath.Join(archive, entry.Name())
		s.must(copyFile(filepath.Join(wal, entry.Name()), to, 0o600))
		s.must(own(to))
	}
	for _, path := range programs {
		s.must(copyFile(path, filepath.Join(tools, filepath.Base(filepath.Dir(path)), filepath.Base(path)), 0o755))
	}
	command = strings.NewReplacer("WAL", archive, "PROGRAMS", tools, "'", "''").Replace(command)
	s.create("recovery.signal", "")
	s.appendFile("postgresql.conf", append([]string{
		fmt.Sprintf("restore_command = '%s'", command),
		"recovery_target_action = promote",
		"synchronous_standby_names = ''",
	}, conf...))
	s.Start()
	s.WaitFor("the end of recovery", func() bool { return !s.InRecovery() })
	return s
}
