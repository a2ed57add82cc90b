package gate

// Spread reports whether the operations are counted on several counters.
func (g *Gate) Spread() bool { return g.stripes.Load() != nil }

// MakeSpread has operations from now on counted on several counters.
func (g *Gate) MakeSpread() { g.spread() }
