package stream

import (
	"testing"
	"testing/synctest"
)

func TestReceiveToEndLSN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlay(t, oneTimeline(0x500080))
		p.with(newMemory())
		p.receive(Options{EndLSN: 0x500040, StartLSN: 0x300000})
		err := p.serve()
		p.ended(err)
		p.usable()
		p.hasWAL(1, 0x300000, 0x500080)
		t.Log(p.trace, p.events, p.logs)
	})
}
