"""The live conversation: pure state machines, and one actor that carries out what they decide.

Events and a time go in, commands and notices come out; nothing here awaits, starts a thread or reads a clock.
`docs/live.md` holds the contract as tables.
"""
