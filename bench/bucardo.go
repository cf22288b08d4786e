package main

import (
	"context"
	"errors"
)

type bucardo struct{}

func (*bucardo) close(context.Context) error { return nil }

func bucardoMissing() string { return "not yet" }

func (b *bench) bucardoCopy(context.Context, *job) error { return errors.New("not yet") }
