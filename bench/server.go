package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"libreceivewal/segment"
)

// server is one PostgreSQL server that the bench has made. Its data may outlive the bench: then it is started anew.
type server struct {
	o      *options
	data   string
	socket string // folder of the Unix socket
	port   int
	cmd    *exec.Cmd
	exited chan struct{}
}

// servers are those that run: to be stopped at the end, whatever the end is.
type servers struct {
	sync.Mutex
	running []*server
}

func (r *servers) stop() {
	r.Lock()
	all := r.running
	r.running = nil
	r.Unlock()
	for _, s := range all {
		s.shutDown()
	}
}

// initServer makes a cluster's data folder.
func initServer(o *options, data string, segmentMB int, conf ...string) error {
	if err := os.MkdirAll(filepath.Dir(data), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := own(data); err != nil {
		return err
	}
	initdb := asPostgres(exec.Command(filepath.Join(o.pgBin, "initdb"), "--pgdata", data, "--username", "postgres", "--auth", "trust",
		"--encoding", "UTF8", "--no-locale", "--no-sync", "--wal-segsize", strconv.Itoa(segmentMB)))
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	file, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	lines := append([]string{
		"max_wal_senders = 50",
		"max_replication_slots = 50",
		"max_connections = 120",
		"max_wal_size = '64GB'",
		"checkpoint_timeout = '1h'",
		"autovacuum = off",
		"shared_buffers = '256MB'",
		"wal_sender_timeout = '1min'",
		"timezone = 'UTC'",
	}, conf...)
	_, err = file.WriteString(strings.Join(lines, "\n") + "\n")
	return errors.Join(err, file.Close())
}

// startServer starts it on a Unix socket and on TCP.
func startServer(o *options, data string, settings ...string) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{o: o, data: data, port: l.Addr().(*net.TCPAddr).Port, exited: make(chan struct{})}
	l.Close()
	// A socket's path may have 107 bytes at most: not below the data.
	if s.socket, err = os.MkdirTemp("/tmp", "receivewal-bench-"); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(s.socket, 0o755), own(s.socket)); err != nil {
		return nil, err
	}
	// ALTER SYSTEM is for one bench: the next one begins with the configuration that initServer made.
	if err := os.WriteFile(filepath.Join(data, "postgresql.auto.conf"), nil, 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(data+".log", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = asPostgres(exec.Command(filepath.Join(o.pgBin, "postgres"), "-D", data, "-k", s.socket, "-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1"))
	for _, setting := range settings {
		s.cmd.Args = append(s.cmd.Args, "-c", setting)
	}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// Should the bench be killed, the server stops too. The signal comes when the thread ends that started it: the main one.
	s.cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.cmd.Wait(); close(s.exited) }()
	o.servers.Lock()
	o.servers.running = append(o.servers.running, s)
	o.servers.Unlock()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, err := s.sql("select 1")
		if err == nil {
			return s, nil
		}
		select {
		case <-s.exited:
			text, _ := os.ReadFile(data + ".log")
			return nil, fmt.Errorf("the server ended at once: %s", text)
		default:
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the server does not get ready: %w", err)
		}
	}
}

// stop ends a server before the bench does.
func (s *server) stop() {
	s.o.servers.Lock()
	s.o.servers.running = slices.DeleteFunc(s.o.servers.running, func(other *server) bool { return other == s })
	s.o.servers.Unlock()
	s.shutDown()
}

func (s *server) shutDown() {
	s.cmd.Process.Signal(syscall.SIGINT) // fast
	select {
	case <-s.exited:
	case <-time.After(time.Minute):
		s.cmd.Process.Signal(syscall.SIGQUIT)
		<-s.exited
	}
	os.RemoveAll(s.socket)
}

// host is what libpq calls host, for a transport.
func (s *server) host(transport string) string {
	if transport == "unix" {
		return s.socket
	}
	return "127.0.0.1"
}

func (s *server) connString(transport string) string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable", s.host(transport), s.port)
}

// sql runs statements and returns the first column of the last one's rows.
func (s *server) sql(text string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	// What is done here must not wait for the standby that is measured.
	conn, err := pgconn.Connect(ctx, s.connString("unix")+" options='-c synchronous_commit=local'")
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, text).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", text, err)
	}
	var rows []string
	if len(results) > 0 {
		for _, row := range results[len(results)-1].Rows {
			rows = append(rows, string(row[0]))
		}
	}
	return rows, nil
}

// value is sql for exactly one value.
func (s *server) value(text string) (string, error) {
	rows, err := s.sql(text)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("%s: %d rows", text, len(rows))
	}
	if err != nil {
		return "", err
	}
	return rows[0], nil
}

func (s *server) lsn(text string) (segment.LSN, error) {
	v, err := s.value(text)
	if err != nil {
		return 0, err
	}
	return segment.ParseLSN(v)
}

// waitFor polls until a query answers t.
func (s *server) waitFor(query string) error {
	return s.waitWith(nil, query)
}

// waitWith is waitFor what a process is to bring about, and ends with it.
func (s *server) waitWith(p *process, query string) error {
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if p != nil {
			select {
			case err := <-p.exited:
				p.exited <- err
				return fmt.Errorf("%s has ended: %w", p.cmd.Path, errors.Join(err, errors.New(p.text())))
			default:
			}
		}
		v, err := s.value(query)
		if err != nil {
			return err
		}
		if v == "t" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited a minute in vain for: %s", query)
		}
	}
}

// program is one of PostgreSQL's client programs with the arguments that connect it.
func (s *server) program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.o.pgBin, name), append([]string{"-h", s.socket, "-p", strconv.Itoa(s.port), "-U", "postgres"}, args...)...)
	cmd.Env = environment()
	return cmd
}

// environment is the same everywhere: nothing of the caller's PG* variables or locale.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/tmp", "LC_ALL=C.UTF-8", "TZ=UTC", "PGUSER=postgres", "PGSSLMODE=disable", "PGGSSENCMODE=disable"}
}

// asPostgres has root's servers run as user postgres: PostgreSQL refuses to run as root.
func asPostgres(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env, cmd.Dir = environment(), "/tmp"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the bench, which stops its servers in order
	if uid, gid, is := postgresUser(); is {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	return cmd
}

func own(path string) error {
	if uid, gid, is := postgresUser(); is {
		return os.Chown(path, int(uid), int(gid))
	}
	return nil
}

func postgresUser() (uid, gid uint32, is bool) {
	if os.Getuid() != 0 {
		return 0, 0, false
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, false
	}
	number, err := strconv.Atoi(u.Uid)
	group, err2 := strconv.Atoi(u.Gid)
	return uint32(number), uint32(group), err == nil && err2 == nil
}

// pgbench runs it. It is given much time, but not for ever: a standby that confirms nothing would have it hang.
func (s *server) pgbench(args ...string) error {
	cmd := s.program("pgbench", append(args, "postgres")...)
	late := time.AfterFunc(2*time.Minute+time.Duration(s.o.seconds)*time.Second, func() {
		if cmd.Process != nil {
			cmd.Process.Kill()
		}
	})
	defer late.Stop()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// set changes settings while the server runs.
func (s *server) set(setting, value string) error {
	if _, err := s.sql(fmt.Sprintf("alter system set %s = '%s'", setting, value)); err != nil {
		return err
	}
	if _, err := s.sql("select pg_reload_conf()"); err != nil {
		return err
	}
	return s.waitFor(fmt.Sprintf("select current_setting('%s') = '%s'", setting, value))
}
