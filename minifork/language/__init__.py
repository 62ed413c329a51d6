"""What the engines need of language models that were trained elsewhere, and verifiers that read text.

    causal_lm      a causal language model of Hugging Face as a model of `minifork.decoding`
    vocabulary     the bytes of its tokens
    patterns       a regular expression as an automaton over bytes
    automata       the same over tokens
    questions      prompts with patterns for their answers: what the engines work on
    export         the other way: a model that was trained here, for Hugging Face

Nothing here is imported unless it is asked for. It needs the extra `hf`.
"""
