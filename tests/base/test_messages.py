"""Messages between our processes: what was sent before an end arrives."""

from rootless_udi.base.messages import pair, receive, send, tell


def test_the_last_words_of_a_process_that_did_not_read_all() -> None:
    ours, theirs = pair()
    send(ours, ("for somebody who does not read it",), [])
    tell(theirs, "! why")
    theirs.close()
    assert receive(ours) == ("! why", [])
    assert receive(ours) == ("", [])
    ours.close()


def test_a_process_that_ends_without_a_word() -> None:
    ours, theirs = pair()
    send(ours, ("unread",), [])
    theirs.close()
    assert receive(ours) == ("", [])
    ours.close()
