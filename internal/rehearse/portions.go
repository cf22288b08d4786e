package rehearse

import "slices"

// Locks is about how many entries of the server's lock table the creation of an object takes until its transaction
// ends.
func Locks(o Object) int {
	switch o.Type {
	case "TABLE", "MATERIALIZED VIEW":
		return 4 // it, its TOAST table, the index of that, its type
	case "EXTENSION":
		return 40
	case "FK CONSTRAINT", "VIEW", "SEQUENCE", "TRIGGER", "INDEX ATTACH", "TABLE ATTACH":
		return 2
	default:
		return 1
	}
}

// Portion is a part of the objects that can be created without the rest.
type Portion []Object

// Plan cuts the objects into portions that need no more than so many locks each. Each holds what its own objects need:
// an object may be in several. tooLarge counts the objects that need more than that with what they need, which are in
// none.
func Plan(objects []Object, room int) (portions []Portion, tooLarge int) {
	total := 0
	for _, o := range objects {
		total += Locks(o)
	}
	if total <= room {
		if len(objects) == 0 {
			return nil, 0
		}
		return []Portion{objects}, 0
	}
	p := planner{objects: objects, by: map[string][]int{}, need: make([][]int, len(objects))}
	for i, o := range objects {
		for _, name := range provides(o) {
			p.by[name] = append(p.by[name], i)
		}
	}
	for i := range objects {
		p.need[i] = p.needed(i)
	}
	always := p.always()
	chosen, used := p.start(always)
	least := used
	done := make([]bool, len(objects))
	var own []int
	flush := func() {
		if len(own) > 0 {
			portions = append(portions, p.portion(chosen))
		}
		own = nil
		chosen, used = p.start(always)
	}
	for i := range objects {
		if done[i] || chosen[i] {
			done[i] = true
			continue
		}
		more, locks := p.closure(i, chosen)
		if used+locks > room && len(own) > 0 {
			flush()
			more, locks = p.closure(i, chosen)
		}
		if used+locks > room && used == least {
			tooLarge++
			continue
		}
		for _, n := range more {
			chosen[n] = true
			done[n] = true
		}
		used += locks
		own = append(own, i)
	}
	flush()
	return portions, tooLarge
}

type planner struct {
	objects []Object
	by      map[string][]int // who provides a name
	need    [][]int
}

func (p *planner) needed(i int) (list []int) {
	for _, name := range needs(p.objects[i]) {
		for _, n := range p.by[name] {
			if n < i && !slices.Contains(list, n) {
				list = append(list, n)
			}
		}
	}
	return list
}

// always are the objects that others rely on without a mention (operators, casts, schemas, extensions), if they rely on
// no relation.
func (p *planner) always() []bool {
	list := make([]bool, len(p.objects))
	for i, o := range p.objects {
		switch o.Type {
		case "TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE", "SEQUENCE OWNED BY", "INDEX",
			"CONSTRAINT", "FK CONSTRAINT",
			"CHECK CONSTRAINT", "TRIGGER", "RULE", "POLICY", "ROW SECURITY", "DEFAULT", "STATISTICS", "TABLE ATTACH",
			"INDEX ATTACH", "COMMENT":
			continue
		}
		list[i] = !o.Probe && !slices.ContainsFunc(p.need[i], func(n int) bool { return !list[n] })
	}
	return list
}

func (p *planner) start(always []bool) (chosen []bool, locks int) {
	chosen = slices.Clone(always)
	for i, is := range always {
		if is {
			locks += Locks(p.objects[i])
		}
	}
	return chosen, locks
}

// closure is an object with what it needs, as far as that is not chosen yet.
func (p *planner) closure(i int, chosen []bool) (list []int, locks int) {
	seen := map[int]struct{}{}
	var add func(int)
	add = func(n int) {
		if _, ok := seen[n]; ok || chosen[n] {
			return
		}
		seen[n] = struct{}{}
		for _, needed := range p.need[n] {
			add(needed)
		}
		list = append(list, n)
		locks += Locks(p.objects[n])
	}
	add(i)
	return list, locks
}

func (p *planner) portion(chosen []bool) (list Portion) {
	for i, is := range chosen {
		if is {
			list = append(list, p.objects[i])
		}
	}
	return list
}
