"""The live conversation: pure state machines, and one actor that carries out what they decide.

Events and a time go into the machines, commands and notices come out; none of them awaits, starts a thread or reads a
clock. The actor (`session`) does.
`docs/live.md` holds the contract as tables.
"""
