"""Materials: the one chat renderer, from messages to tokens and which of them are learnt."""
