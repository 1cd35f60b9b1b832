package main

import (
	"context"
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// rawCodec sends and receives bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// runNoop makes calls that do nothing, `calls` of them one after the other in place of each workflow.
func runNoop(addr string, n, conc, calls, warm, payload, pid int) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	request := make([]byte, payload)
	one := func(int) error {
		for k := 0; k < calls; k++ {
			var reply []byte
			if err := conn.Invoke(context.Background(), "/perdure.bench.Noop/Call", &request, &reply); err != nil {
				return err
			}
		}
		return nil
	}
	repeat(warm, conc, one)
	cpu0 := cpuSeconds(pid)
	done := repeat(n, conc, one)
	report(done, map[string]any{"n": n, "c": conc, "calls": calls}, cpuSeconds(pid)-cpu0, pid)
}
